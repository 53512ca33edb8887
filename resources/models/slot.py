"""One model in memory: asking for another frees the first."""

from __future__ import annotations

from typing import Any

from resources.models import compute
from resources.models.entry import LocalModel


class ModelSlot:
    """Holds the model last asked for; at the end of a `with` block nothing.

    Used by one thread at a time: steps that need it share the pool `gpu`, which admits one. A step frees it before
    it leaves the pool, for the next may be another process'.
    """

    def __init__(self) -> None:
        self._held: LocalModel | None = None
        self._model: Any = None

    def __enter__(self) -> ModelSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def get(self, model: LocalModel) -> Any:
        """The loaded `model`, loaded now if it is not the one in memory; any other is freed before."""
        if self._held != model:
            self.free()
            self._model = model.load()
            self._held = model
        return self._model

    def free(self) -> None:
        """Let go of the model, if there is one, and give its memory back to the system and the GPU."""
        if self._held is None:
            return
        self._held = self._model = None
        compute.release_memory()
