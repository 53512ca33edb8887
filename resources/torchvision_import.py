"""Makes torchvision importable with a build of torch that its compiled library is not linked to.

The package index's torchvision is linked to CUDA. With a CPU build of torch its library cannot be
loaded, and its import then fails on operators that it registers rules for. Declaring those operators first
avoids that; the operators themselves (non-maximum suppression) stay unusable, and Flexy does not use them.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Finder:
    """Finds torchvision as usual, and declares its operators before it is executed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def declare_and_execute(module: ModuleType) -> None:
            _declare(spec)
            execute(module)

        loader.exec_module = declare_and_execute
        return spec


# Operators exist only as long as the library object is referenced.
_declared: list[Any] = []


def _declare(spec: ModuleSpec) -> None:
    import torch

    compiled = PathFinder.find_spec("torchvision._C", spec.submodule_search_locations)
    try:
        if compiled and compiled.origin:
            torch.ops.load_library(compiled.origin)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def install_torchvision_shim() -> None:
    """Apply the workaround to every later `import torchvision` of this process."""
    if not any(isinstance(finder, type) and finder is _Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder)
