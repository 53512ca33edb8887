"""Device, precision and memory of models."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from resources.errors import FlexyError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


def compute_device() -> str:
    """Return `cuda` where there is a GPU, with TF32 on for fp32 operations, else `cpu`."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return "cuda"


def uses_tf32() -> bool:
    """Return whether fp32 operations run in TF32."""
    import torch

    return torch.cuda.is_available() and torch.backends.cuda.matmul.allow_tf32


def describe_runtime() -> dict[str, str | None]:
    """Return the `gpu_name`, None without a GPU, and the versions of the libraries that make images."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    libraries = ("torch", "diffusers", "transformers")
    return {"gpu_name": gpu} | {f"{name}_version": importlib.metadata.version(name) for name in libraries}


def take_peak_memory_mb() -> int | None:
    """Return the most MB of the GPU's memory that were in use since the last call; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() // 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def torch_dtype(precision: str) -> torch.dtype:
    """Return torch's type for `fp32`, `fp16` or `bf16`."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def release_memory() -> None:
    """Return unreferenced memory to the system and to the GPU's other processes."""
    gc.collect()
    # Objects that outlived a model are permanent: later collections can skip them.
    gc.freeze()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
    if sys.platform == "linux":
        # glibc keeps freed blocks below its mmap threshold.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's or Python's out-of-memory error."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


class HalvingBatches:
    """Splits calls into batches of at most `size`; a batch that runs out of memory is halved, down to single items."""

    def __init__(self, size: int) -> None:
        self.size = self.max_size = size

    def __call__(self, call: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R | FlexyError]:
        """Return `call`'s result for each item, in order, and an error for an item that is too large by itself."""
        results: list[R | FlexyError] = []
        while len(results) < len(items):
            batch = items[len(results) : len(results) + self.size]
            ran_out = False
            try:
                results.extend(call(batch))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                ran_out = True
            # Outside the handler: the error references the frames, and these the tensors.
            if ran_out:
                release_memory()
                if len(batch) > 1:
                    self.size = len(batch) // 2
                    continue
                results.append(FlexyError("out of memory for this image alone: use a smaller image, or more memory"))
                self.size = self.max_size
        return results
