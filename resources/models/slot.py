"""One model in memory: asking for another frees the first."""

from __future__ import annotations

import gc
import sys
from typing import Any

from resources.models.registry import ModelEntry


class ModelSlot:
    """Holds the model last asked for.

    Used by one thread at a time: steps that need it share the pool `gpu`, which admits one.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._model: Any = None

    def get(self, entry: ModelEntry) -> Any:
        """The model of `entry`, loaded if it is not the one in memory; any other is freed before."""
        if self._name != entry.name:
            self.free()
            self._model = entry.load()
            self._name = entry.name
        return self._model

    def free(self) -> None:
        """Let go of the model and give its memory back to the device."""
        self._name = self._model = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
