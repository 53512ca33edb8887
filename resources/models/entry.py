"""`ModelEntry`, a model as the registry declares it, and `LocalModel`, the same model on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from resources.errors import FlexyError
from resources.models import compute, weights
from resources.models.weights import PublishedWeights, UserProvidedWeights

Kind = Literal["engine", "editor", "scorer", "judge", "face", "part"]


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry.

    `loader` is "module:callable", imported only when the model is loaded, and called with the folder of its files, if
    it has any, and `options`. `published` are the weights of the set `full`, `embedded` is the folder of the set
    `mini`; a model with neither needs no weights and belongs to both. `user_provided` are weights of the set `full`
    that only the user can supply. `required_models` maps the loader's arguments to other entries whose folder it takes;
    `optional_models` to those whose folder it takes if the user has named one. `weights_of` is another entry whose
    files it reads, unless it has its own. `reference` is the package that computes the same by its own code, and the
    loader for it. `half_precision` is its precision on a
    GPU, `memory` the memory in GB that it then takes. For an engine,
    `ignored_settings` are the settings without effect, `prompts` a sweep's default prompts, `side` the default pixels
    along each side, a multiple of `multiple`, `steps_range` and `guidance_range` the values it may be used at, both
    ends included, where it is made for some alone, `schedulers` the names of those that may take its own's place. For
    an editor and for trying an engine, `steps` and `guidance` are those that its authors recommend; an editor that
    `supports_faces` may edit faces.
    """

    name: str
    kind: Kind
    loader: str
    published: PublishedWeights | None = None
    embedded: Path | None = None
    user_provided: UserProvidedWeights | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    required_models: Mapping[str, str] = field(default_factory=dict)
    optional_models: Mapping[str, str] = field(default_factory=dict)
    weights_of: str | None = None
    reference: tuple[str, str] | None = None
    half_precision: Literal["fp16", "bf16"] | None = None
    memory: float = 0
    ignored_settings: frozenset[str] = frozenset()
    prompts: Path | None = None
    side: int = 512
    multiple: int = 16
    supports_faces: bool = False
    steps: int = 20
    guidance: float = 4.0
    steps_range: tuple[int, int] | None = None
    guidance_range: tuple[float, float] | None = None
    schedulers: tuple[str, ...] = ()

    def in_set(self, models: str) -> bool:
        """Whether the model belongs to the set `mini` or `full`."""
        if self.published or self.user_provided or self.embedded:
            return bool(self.embedded if models == "mini" else self.published or self.user_provided)
        return True


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine, with its folder; nothing is read before `load`."""

    name: str
    folder: Path | None
    loader: str
    options: Mapping[str, Any] = field(default_factory=dict)
    required_models: Mapping[str, LocalModel] = field(default_factory=dict)
    threads: int | None = None
    """The number of CPU threads it computes with; None leaves it to torch."""
    half_precision: str | None = None
    requested_precision: str = "auto"
    """The precision that the user requests, FLEXY_PRECISION."""
    published: PublishedWeights | None = None
    """The weights in the folder, where it is the hub's cache."""
    user_provided: UserProvidedWeights | None = None
    """The files that the user's folder must hold; `folder` is None where the user has named none."""
    package: str = ""
    """The package and its version by whose code it computes, where it is not ours."""

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `bf16`; half precision only on a GPU, unless it is requested by name."""
        if self.half_precision is None or self.requested_precision == "fp32":
            return "fp32"
        if self.requested_precision != "auto":
            return self.requested_precision
        import torch

        return self.half_precision if torch.cuda.is_available() else "fp32"

    def load(self) -> Any:
        """Return the loaded model. Raises `FlexyError` naming a file that is missing or damaged."""
        self.check()
        silence_library_logging()
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        options = dict(self.options)
        if self.half_precision:
            options["precision"] = self.precision
        for argument, model in self.required_models.items():
            model.check()
            options[argument] = model.folder
        load = resolve_name(self.loader)
        try:
            return load(self.folder, **options) if self.folder else load(**options)
        except Exception as error:
            if not compute.is_out_of_memory(error):
                raise
            remedy = "free some, see flexy models for what it takes"
            raise FlexyError(f"not enough memory to load {self.name}: {remedy}") from error

    def check(self) -> None:
        """Raise `FlexyError` for a file that is missing or damaged."""
        if self.folder:
            weights.check_files(self.name, self.folder, self.published, self.user_provided)
        elif self.user_provided:
            remedy = weights.describe_user_provided(self.name, self.user_provided)
            cause = "they are not redistributable and never downloaded"
            raise FlexyError(f"no weights for {self.name}: {cause}: {remedy}, or set FLEXY_MODELS=mini")

    @property
    def fingerprint(self) -> str:
        """The fingerprint recorded with scores: name, package if not ours, short hash of the weights, precision.

        It includes the fingerprints of required models with user-provided files, which nothing else identifies.
        """
        fingerprint = self.name + (f"[{self.package}]" if self.package else "")
        if self.folder:
            fingerprint += f"@{weights.weights_fingerprint(self.folder, self.published, self.user_provided)}"
        fingerprint += "" if self.precision == "fp32" else f"/{self.precision}"
        required = [model.fingerprint for model in self.required_models.values() if model.user_provided]
        return "+".join([fingerprint, *required])


def silence_library_logging() -> None:
    """Turn off transformers' own progress bars and notes, which would drown the command's."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
