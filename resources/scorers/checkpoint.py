"""Reads tensors from published checkpoint files, and never code.

A file from outside is hostile until it is read: whatever a library raises over it becomes one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten

import torch
from safetensors import safe_open
from torch import Tensor

from resources.errors import FlexyError
from resources.models import compute


@contextmanager
def named_loading_errors(path: Path) -> Iterator[None]:
    """Turns any error of the block into a `FlexyError` that names `path`, a file or a folder, and its cause."""
    try:
        yield
    except FlexyError:
        raise
    except UnpicklingError:
        # torch's own words run over a page and advise to load the file after all.
        raise load_error(path, "it is damaged, or holds more than tensors and might run code") from None
    # Each library has its own errors for what is cut short, garbage, or another model's; no list of them is whole.
    except Exception as error:
        if compute.is_out_of_memory(error):
            raise
        cause = shorten(f"{type(error).__name__}: {error}".rstrip(": "), 250, placeholder=" …")
        raise load_error(path, f"it is cut short, damaged or another model's ({cause})") from error


def load_error(path: Path, cause: str) -> FlexyError:
    """The one line about a file or folder that does not make its model."""
    return FlexyError(f"cannot load {path}: {cause}: fetch it anew")


def read_tensors(folder: Path, files: Sequence[str], prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
    """The tensors below the first of `prefixes` that has any, by the rest of their names.

    They come from the first of `files` that is in `folder`: of safetensors only these are read, torch's own files
    are read whole, as plain tensors only. Raises `FlexyError` naming the file that is missing, cut short, another
    model's, or wants to run code.
    """
    path = next((folder / name for name in files if (folder / name).is_file()), None)
    if path is None:
        raise FlexyError(f"no weights in {folder}: it has no {' and no '.join(files)}: put one there, or name another")
    with named_loading_errors(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return _below(prefixes, file.keys(), file.get_tensor, path)
        # Not mapped: torch would take whatever lies there for the weights, in an archive that is packed or damaged.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    tensors = inner.items() if isinstance(inner, dict) else ()
    named = {name: value for name, value in tensors if isinstance(name, str) and isinstance(value, Tensor)}
    return _below(prefixes, named, named.__getitem__, path)


def _below(
    prefixes: Sequence[str], names: Iterable[str], get: Callable[[str], Tensor], path: Path
) -> dict[str, Tensor]:
    known = list(names)
    for prefix in prefixes:
        if found := [name for name in known if name.startswith(prefix)]:
            return {name.removeprefix(prefix): get(name) for name in found}
    raise load_error(path, f"it is another model's, it has no {' or '.join(filter(None, prefixes)) or 'tensors'}")
