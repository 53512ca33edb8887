"""The protocols of what computes a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


class Head(Protocol):
    """Scores kept embeddings: a metric that costs no pass over the pictures."""

    def marks(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, width) L2-normalised image vectors to (n,) scores."""
        ...


class Scorer(Protocol):
    """Scores pictures."""

    batch_size: int
    """How many pictures one call scores at the most."""

    def prepare(self, picture: Image) -> Any:
        """What the model reads of an RGB picture of any size. Called from several threads, ahead of the model."""
        ...

    def scores(self, prepared: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) scores of n prepared pictures, each with its prompt."""
        ...
