"""A model as the registry declares it, and the same model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from resources.errors import FlexyError
from resources.models import compute, weights
from resources.models.weights import PublishedWeights, UserProvidedWeights

Kind = Literal["engine", "editor", "scorer", "judge", "face", "part"]


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry: one line says all there is to know of it.

    `loader` is "module:callable", imported only when the model is wanted and called with the folder of its
    files, if it has any, and `options`. `published` are the weights of the set `full`, `embedded` the folder
    of the set `mini`; a model with neither needs no weights and belongs to both. `brought` are weights of the set
    `full` that only the user can bring. `needs` names other entries whose folder the loader takes, by argument, and
    `welcomes` those whose folder it takes where the user has named one. `half` is the precision it runs with on a
    GPU, `memory` what it then takes (GB). For an engine `ignores` are the
    settings it does not know, `prompts` a sweep's when none are given, `side` the pixels along each side unless the
    user asks otherwise, which must be a multiple of `multiple`. For an editor, and for
    an engine's trials, `steps` and `guidance` are those of its authors; one that `retouches` can be left faces.
    """

    name: str
    kind: Kind
    loader: str
    published: PublishedWeights | None = None
    embedded: Path | None = None
    brought: UserProvidedWeights | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    welcomes: Mapping[str, str] = field(default_factory=dict)
    half: Literal["fp16", "bf16"] | None = None
    memory: float = 0
    ignores: frozenset[str] = frozenset()
    prompts: Path | None = None
    side: int = 512
    multiple: int = 16
    retouches: bool = False
    steps: int = 20
    guidance: float = 4.0

    def in_set(self, models: str) -> bool:
        """Whether the model belongs to the set `mini` or `full`."""
        if self.published or self.brought or self.embedded:
            return bool(self.embedded if models == "mini" else self.published or self.brought)
        return True


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine, its folder known; nothing is loaded or looked at before `load`."""

    name: str
    folder: Path | None
    loader: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, LocalModel] = field(default_factory=dict)
    threads: int | None = None
    """How many CPU threads it computes with; None leaves that to torch."""
    half: str | None = None
    asked: str = "auto"
    """The precision the user asks for, FLEXY_PRECISION."""
    published: PublishedWeights | None = None
    """What the folder holds, where it is the hub's cache."""
    brought: UserProvidedWeights | None = None
    """What the user's folder must hold, where there is no other; without a folder the user has named none."""

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `bf16`; half precision only on a GPU, unless it is asked for by name."""
        if self.half is None or self.asked == "fp32":
            return "fp32"
        if self.asked != "auto":
            return self.asked
        import torch

        return self.half if torch.cuda.is_available() else "fp32"

    def load(self) -> Any:
        """The model, ready to use, its files checked first.

        Raises `FlexyError` naming the file that is missing or not as it was published.
        """
        self.check()
        silence_library_logging()
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        options = dict(self.options)
        if self.half:
            options["precision"] = self.precision
        for argument, model in self.needs.items():
            model.check()
            options[argument] = model.folder
        module, _, name = self.loader.partition(":")
        make: Callable[..., Any] = getattr(import_module(module), name)
        try:
            return make(self.folder, **options) if self.folder else make(**options)
        except Exception as error:
            if not compute.is_out_of_memory(error):
                raise
            raise FlexyError(
                f"not enough memory to load {self.name}: free some, see flexy models for what it takes"
            ) from error

    def check(self) -> None:
        """Raises `FlexyError` naming a file that is missing or damaged, and the remedy."""
        if self.folder:
            weights.check_files(self.name, self.folder, self.published, self.brought)
        elif self.brought:
            raise FlexyError(
                f"no weights for {self.name}: they are not handed out, so they are never fetched:"
                f" {weights.describe_user_provided(self.name, self.brought)}, or set FLEXY_MODELS=mini"
            )

    @property
    def fingerprint(self) -> str:
        """Name, a short hash of the weights and the precision: what a score says it was made by.

        Files that the user brings are known by nothing else: those of what the model needs are named with it.
        """
        mark = self.name
        if self.folder:
            mark += f"@{weights.weights_fingerprint(self.folder, self.published, self.brought)}"
        mark += "" if self.precision == "fp32" else f"/{self.precision}"
        return "+".join([mark, *(model.fingerprint for model in self.needs.values() if model.brought)])


def silence_library_logging() -> None:
    """Load without the library's own bars and notes, which drown the command's."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
