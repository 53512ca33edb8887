"""The models by name: where their files lie, how they are checked and what loads them.

A loader is named by its module, which is imported only when the model is wanted: the webserver
reads this registry and must not import torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from resources.errors import BadInputError, FlexyError
from resources.settings import Settings

MINI = Path(__file__).parent.parent / "mini"
MINI_WEIGHTS = MINI / "weights"


@dataclass(frozen=True)
class ModelEntry:
    """One model: `loader` is "module:callable", called with the folder and `options`."""

    name: str
    folder: Path
    loader: str
    options: dict[str, Any] = field(default_factory=dict)
    prompts: Path | None = None
    """For an engine, the prompts a sweep uses when none are given."""
    side: int = 512
    """For an engine, the pixels along each side of an image unless the user asks otherwise."""
    threads: int | None = None
    """How many CPU threads it computes with; None leaves that to torch."""

    def load(self) -> Any:
        """The model, ready to use, its files checked first.

        Raises `FlexyError` naming the file that is missing or not as it was published.
        """
        self.check()
        module, _, name = self.loader.partition(":")
        _hush()
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        make: Callable[..., Any] = getattr(import_module(module), name)
        return make(self.folder, **self.options)

    def check(self) -> None:
        for path, recorded in _recorded(self.folder).items():
            if not path.exists():
                raise FlexyError(f"no weights for {self.name}: {path} is missing: {_REMEDY}")
            if _sha256(path, path.stat().st_mtime_ns) != recorded:
                raise FlexyError(f"weights for {self.name} are damaged: {path} has another SHA-256: {_REMEDY}")

    @property
    def fingerprint(self) -> str:
        """The name and a short hash over the hashes of its weights: what a score says it was made by."""
        hashes = "".join(recorded for _, recorded in sorted(_recorded(self.folder).items()))
        return f"{self.name}@{hashlib.sha256(hashes.encode()).hexdigest()[:12]}"


def _hush() -> None:
    """Load without the libraries' own bars and notes, which drown the command's."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()


_REMEDY = "restore it with git, or train it with python -m resources.mini.train"


def _recorded(folder: Path) -> dict[Path, str]:
    """The weight files of a mini model and their SHA-256, from the manifest that training wrote."""
    manifest = MINI_WEIGHTS / "manifest.json"
    try:
        files = json.loads(manifest.read_text())
        recorded = {MINI_WEIGHTS / name: entry["sha256"] for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FlexyError(f"cannot read the weights' manifest {manifest}: {error}: {_REMEDY}") from None
    of_folder = {path: sha256 for path, sha256 in recorded.items() if path.is_relative_to(folder)}
    if not of_folder and folder.is_relative_to(MINI_WEIGHTS):
        raise FlexyError(f"the weights' manifest {manifest} says nothing of {folder}: {_REMEDY}")
    return of_folder


@cache
def _sha256(path: Path, _modified_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _mini(name: str, loader: str, **more: Any) -> ModelEntry:
    # So small a model gains a quarter from a second thread, and runs many times slower with it where
    # another process wants that core: one thread is the better default.
    return ModelEntry(f"mini_{name}", MINI_WEIGHTS / name, loader, threads=1, **more)


ENGINES: dict[str, dict[str, ModelEntry]] = {
    "mini": {
        "mini_sdxl": _mini(
            "sdxl",
            "resources.engines.sdxl:SdxlEngine",
            options={"images_a_call": 16},
            prompts=MINI / "prompts.txt",
            side=64,
        ),
    },
    "full": {},
}
"""The engines of each model set."""

SCORERS: dict[str, dict[str, ModelEntry]] = {
    "mini": {
        "clip": _mini("clip", "resources.scorers.clip:ClipEncoder"),
        "hps": _mini("hps", "resources.scorers.clip:ClipEncoder"),
        "aesthetic_v1": _mini("aesthetic_v1", "resources.scorers.aesthetic:load"),
        "aesthetic_v2": _mini("aesthetic_v2", "resources.scorers.aesthetic:load"),
    },
    "full": {},
}
"""The models that score, of each model set, under the names the metrics know them by."""


def engine_entry(name: str, settings: Settings) -> ModelEntry:
    """The engine called `name`. Raises `BadInputError` with the known ones."""
    return _entry(ENGINES, "engine", name, settings)


def scorer_entry(name: str, settings: Settings) -> ModelEntry:
    """The scoring model called `name`. Raises `BadInputError` with the known ones."""
    return _entry(SCORERS, "scorer", name, settings)


def _entry(models: dict[str, dict[str, ModelEntry]], kind: str, name: str, settings: Settings) -> ModelEntry:
    known = models[settings.models]
    if not name:
        raise BadInputError(f"FLEXY_MODELS={settings.models} has no {kind}: use FLEXY_MODELS=mini")
    if name not in known:
        raise BadInputError(
            f"{kind} {name!r} is unknown to FLEXY_MODELS={settings.models}:"
            f" use {', '.join(known) or 'FLEXY_MODELS=mini'}"
        )
    return known[name]
