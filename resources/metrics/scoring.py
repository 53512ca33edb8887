"""How the metrics of edits and inpainting are computed: a scorer turns a batch of candidates into scores.

A metric names its scorer as "module:callable", usually in the file that declares it: it takes a `CandidateBatch` and
returns a list of `BatchScores`, empty where it cannot be used. Metrics with the same scorer are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resources.errors import FlexyError
from resources.models.compute import HalvingBatches

if TYPE_CHECKING:
    from resources.judges import Judge
    from resources.models.slot import ModelSlot
    from resources.settings import Settings

PAIRS_PER_CALL = 64
"""Pairs of arrays that are compared at a time."""

Score = float | FlexyError | None
"""A score, the error that prevented it, or None where the metric does not apply to a candidate."""


def keep_image(image: Any) -> Any:
    """Return the image itself: the preparation of scorers that read RGB images."""
    return image


class CandidateBatch(Protocol):
    """Some candidates of edits or inpainting, and what they are compared with.

    Each list has one entry per candidate: the value, a `FlexyError` where it cannot be read, or None where there is
    none. Edits have the images `edited`, `source` and `parent` (of a variant); inpainting has `scene` (the edited
    scene), `edited` and `before` (what surrounds the mask), `mask` (L, of the same part), `scene_mask` and
    `character`.
    """

    settings: Settings
    slot: ModelSlot
    judge: Judge | None

    @property
    def instructions(self) -> Sequence[str]:
        """The instruction of each candidate."""

    def images(self, kind: str, prepare: Callable[[Any], Any] = keep_image) -> list[Any]:
        """Return the images of one kind, prepared."""

    def image_vectors(self, kind: str) -> list[Any]:
        """Return the L2-normalised CLIP vectors of the images of one kind."""

    def instruction_vectors(self) -> list[Any]:
        """Return the L2-normalised CLIP vectors of the instructions."""

    def model(self, name: str) -> Any:
        """Return a scorer of the model registry, loaded."""

    def fingerprint(self, *names: str) -> str:
        """Return the fingerprint of scores by these scorers of the model registry."""


@dataclass(frozen=True)
class BatchScores:
    """The scores of a batch by metric, and the fingerprint of what computed them."""

    values: Mapping[str, Sequence[Score]]
    fingerprint: str


def map_in_batches(size: int, function: Callable[..., Sequence[Any]], *columns: Sequence[Any]) -> list[Any]:
    """Return `function` of the columns, at most `size` rows at a time; rows with an error or None are passed on."""
    complete = [row for row in zip(*columns, strict=True) if _is_complete(row)]
    results = iter(HalvingBatches(size)(lambda some: function(*zip(*some, strict=True)), complete))
    return map_rows(lambda *_: next(results), *columns)


def map_rows(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """Return `function` of each row of the columns; rows with an error or None are passed on."""
    return [function(*row) if _is_complete(row) else _first_error(row) for row in zip(*columns, strict=True)]


def _is_complete(row: Sequence[Any]) -> bool:
    return not any(value is None or isinstance(value, FlexyError) for value in row)


def _first_error(row: Sequence[Any]) -> FlexyError | None:
    return next((value for value in row if isinstance(value, FlexyError)), None)


def cosine_similarities(left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
    """Return the cosine of each pair of L2-normalised vectors."""
    return map_in_batches(PAIRS_PER_CALL, _cosines, left, right)


def _cosines(left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> list[float]:
    products = np.einsum("nw,nw->n", np.stack(left).astype(np.float64), np.stack(right).astype(np.float64))
    return [float(product) for product in products]


def score_with_head(head: Any, vectors: Sequence[Any]) -> list[Any]:
    """Return the scores of a head on vectors."""
    return map_in_batches(PAIRS_PER_CALL, lambda some: head.score_embeddings(np.stack(some)), vectors)
