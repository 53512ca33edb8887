"""Loads pipelines, networks, tokenizers and tensors from local files, and refuses what is not whole.

Nothing is downloaded and no code in a folder is run. A file from outside is hostile until it is read: any error
that a library raises over it becomes one line with the path, the cause and the remedy.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from resources.errors import FlexyError
from resources.models import compute

_TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "spiece.model"}
"""Each of these holds a whole vocabulary by itself."""


@contextmanager
def named_loading_errors(path: Path) -> Iterator[None]:
    """Turn any error of the block, except lack of memory, into a `FlexyError` that names `path` and the cause."""
    try:
        yield
    except FlexyError:
        raise
    except UnpicklingError:
        # torch's own message fills a page and recommends loading the file anyway.
        raise load_error(path, "it is damaged, or holds more than tensors and might run code") from None
    # Each library has its own errors for truncated files, garbage and other models' files; no list of them is complete.
    except Exception as error:
        if compute.is_out_of_memory(error):
            raise
        cause = shorten(f"{type(error).__name__}: {error}".rstrip(": "), 250, placeholder=" …")
        raise load_error(path, f"it is cut short, damaged or another model's ({cause})") from error


def load_error(path: Path, cause: str) -> FlexyError:
    """Return the error for a file or folder that does not make its model."""
    return FlexyError(f"cannot load {path}: {cause}: fetch or restore its files")


def load_pipeline(kind: Any, folder: Path, dtype: torch.dtype, **components: Any) -> Any:
    """Return the diffusers pipeline of class `kind` in `folder`, each component checked.

    `components` are components and settings that the folder does not hold. Raises `FlexyError` naming what is
    missing, damaged or another model's.
    """
    from diffusers import ModelMixin
    from diffusers.utils import logging
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    # The library's own progress bars and notes would drown the command's.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with named_loading_errors(folder):
        for name, (library, class_name) in _read_component_classes(folder / "model_index.json", kind).items():
            # A folder may name code that it brings; diffusers refuses to run it below.
            is_known = library in ("diffusers", "transformers")
            component = getattr(import_module(library), class_name, None) if is_known else None
            if name in components or not isinstance(component, type):
                continue
            if issubclass(component, (ModelMixin, PreTrainedModel)):
                components[name] = load_network(component, folder / name, dtype)
            elif issubclass(component, (PreTrainedTokenizerBase, ProcessorMixin)):
                components[name] = load_tokenizer(component, folder / name)
        return kind.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True, **components)


def _read_component_classes(index_file: Path, kind: Any) -> dict[str, list[str]]:
    """Return the library and class name of each component that a pipeline's index names."""
    with named_loading_errors(index_file):
        index = json.loads(index_file.read_text("utf-8"))
    # Flexy's own classes only add to the published ones.
    published_class = next(base.__name__ for base in kind.__mro__ if base.__module__.startswith("diffusers."))
    if not isinstance(index, dict) or index.get("_class_name") != published_class:
        raise load_error(index_file, f"it does not describe a {published_class}")
    return {name: value for name, value in index.items() if isinstance(value, list) and value[0]}


def load_network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Return the network of class `kind`, diffusers' or transformers', with every weight read from `folder`.

    `from_pretrained` initialises missing weights at random. Raises `FlexyError` for missing weights, for weights of
    another shape, and where the files cannot be read.
    """
    options: dict[str, Any] = {}
    if kind.__module__.startswith("transformers."):
        options = {
            # transformers then lists the mismatches; diffusers raises on the first one by itself.
            "ignore_mismatched_sizes": True,
            # The folder's configuration may name another one, to be downloaded from the hub as code.
            "attn_implementation": "sdpa" if getattr(kind, "_supports_sdpa", True) else "eager",
        }
    with named_loading_errors(folder):
        weight_files = [path.name for path in folder.iterdir() if path.suffix == ".safetensors"]
        network, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            variant="fp16" if weight_files and all(".fp16" in name for name in weight_files) else None,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    unusable = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if unusable:
        raise load_error(folder, f"{len(unusable)} weights are missing or of another size, such as {unusable[0]}")
    return network


def load_weight_file(kind: Any, config_folder: Path, file: Path, dtype: torch.dtype) -> Any:
    """Return the diffusers network of class `kind` as configured in `config_folder`, with every weight from `file`.

    Raises `FlexyError` for a configuration or a file that cannot be read, and for weights that are not the network's.
    """
    with named_loading_errors(config_folder), torch.device("meta"):
        network = kind.from_config(kind.load_config(config_folder, local_files_only=True))
    tensors = read_tensors(file.parent, [file.name])
    with named_loading_errors(file):
        network.load_state_dict(tensors, assign=True)
    return network.to(dtype).eval()


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """Return the tokenizer, or the processor with one, of class `kind` in `folder`.

    `from_pretrained` builds a vocabulary of a few special tokens where files are missing, and then every text reads
    differently. Raises `FlexyError` for a vocabulary that is missing or incomplete, and for unreadable files.
    """
    with named_loading_errors(folder):
        files = {path.name for path in folder.iterdir()}
        if not (files & _TOKENIZER_FILES or files >= {"vocab.json", "merges.txt"}):
            raise load_error(folder, "it has no vocabulary")
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        if kind.__name__ == "CLIPTokenizer":
            merges = len(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"])
            # Each token is a byte (512, half of them at a word's end), the start or end token, or made by a merge.
            if merges != tokenizer.vocab_size - 512 - 2:
                cause = f"its tokenizer is incomplete: {tokenizer.vocab_size} tokens and {merges} merges"
                raise load_error(folder, cause)
    return tokenizer


def read_tensors(folder: Path, files: Sequence[str], prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
    """Return the tensors under the first of `prefixes` that has any, keyed by the rest of their names.

    They are read from the first of `files` that is in `folder`: of safetensors only the matching ones, of torch's own
    format the whole file, as plain tensors only. Raises `FlexyError` naming the file that is missing, cut short,
    another model's, or would run code.
    """
    path = next((folder / name for name in files if (folder / name).is_file()), None)
    if path is None:
        raise FlexyError(f"no weights in {folder}: it has no {' and no '.join(files)}: put one there, or name another")
    with named_loading_errors(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return _select_prefix(prefixes, file.keys(), file.get_tensor, path)
        # Not memory-mapped: in a compressed or damaged archive torch would take arbitrary bytes for the weights.
        content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    items = state.items() if isinstance(state, dict) else ()
    tensors = {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
    return _select_prefix(prefixes, tensors, tensors.__getitem__, path)


def _select_prefix(
    prefixes: Sequence[str], names: Iterable[str], get_tensor: Callable[[str], Tensor], path: Path
) -> dict[str, Tensor]:
    all_names = list(names)
    for prefix in prefixes:
        if matches := [name for name in all_names if name.startswith(prefix)]:
            return {name.removeprefix(prefix): get_tensor(name) for name in matches}
    raise load_error(path, f"it is another model's, it has no {' or '.join(filter(None, prefixes)) or 'tensors'}")
