"""One model in memory: loading another frees the first."""

from __future__ import annotations

import time
from typing import Any

from resources.models import compute
from resources.models.entry import LocalModel


class ModelSlot:
    """Holds the model requested last; the end of a `with` block frees it.

    Used by one thread at a time: steps that need it share the pool `gpu` with limit 1. A step frees it before it
    leaves the pool, as the next step may run in another process.
    """

    def __init__(self) -> None:
        self._held: LocalModel | None = None
        self._model: Any = None
        self.load_ms: int | None = None
        """Milliseconds that loading the model took."""

    def __enter__(self) -> ModelSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def get(self, model: LocalModel) -> Any:
        """Return the loaded `model`; if it is not in memory, free any other one and load it."""
        if self._held != model:
            self.free()
            began = time.perf_counter()
            self._model = model.load()
            self.load_ms = round(1000 * (time.perf_counter() - began))
            self._held = model
        return self._model

    def free(self) -> None:
        """Free the model, if there is one, and return its memory to the system and the GPU."""
        if self._held is None:
            return
        self._held = self._model = None
        compute.release_memory()
