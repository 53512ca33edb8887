"""Where and how models compute: device, precision, what to do when memory runs out."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from resources.errors import FlexyError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


def compute_device() -> str:
    """`cuda` where there is a GPU, else `cpu`; TF32 is on there for what stays in fp32."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return "cuda"


def torch_dtype(precision: str) -> torch.dtype:
    """torch's name for `fp32`, `fp16` or `bf16`."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def cpu_threads() -> int:
    """How many CPU threads a model computes with."""
    import torch

    return torch.get_num_threads()


def release_memory() -> None:
    """Give what is no longer referred to back: to the system, and to the GPU's other users."""
    gc.collect()
    # What has outlived a model is here to stay: the next collection, after the next model, need not look at it.
    gc.freeze()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
    if sys.platform == "linux":
        # glibc keeps freed blocks below its mmap threshold for itself.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python says that there was no memory left."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


class HalvingBatches:
    """Calls in parts of at most `size`; one that runs out of memory is halved, down to single items."""

    def __init__(self, size: int) -> None:
        self.size = self.most = size

    def __call__(self, call: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R | FlexyError]:
        """`call`'s result for each item, in order; an error in the place of an item that alone is too much."""
        results: list[R | FlexyError] = []
        while len(results) < len(items):
            part = items[len(results) : len(results) + self.size]
            ran_out = False
            try:
                results.extend(call(part))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                ran_out = True
            # Outside the handler: the error holds on to the frames, and they to the tensors.
            if ran_out:
                release_memory()
                if len(part) > 1:
                    self.size = len(part) // 2
                else:
                    results.append(
                        FlexyError("out of memory for this one image alone: use a smaller one, or more memory")
                    )
                    self.size = self.most
        return results
