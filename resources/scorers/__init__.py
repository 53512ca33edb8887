"""The interfaces of what computes metrics: `Head` and `Scorer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


class Head(Protocol):
    """Scores stored embeddings: a metric that needs no forward pass over the images."""

    def score_embeddings(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n,) scores of (n, width) L2-normalised image vectors."""


class Scorer(Protocol):
    """Scores images."""

    batch_size: int
    """The maximum number of images per call."""

    def prepare(self, image: Image) -> Any:
        """Return the model's input for an RGB image of any size. Called from several threads, ahead of the model."""

    def scores(self, prepared: Sequence[Any], prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return (n,) scores of n prepared images, each with its prompt."""
