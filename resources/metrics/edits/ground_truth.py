"""The ground truth of edits in the drawn world, by its rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from resources.errors import FlexyError
from resources.metrics import Metric
from resources.metrics.scoring import PAIRS_PER_CALL, BatchScores, CandidateBatch, map_in_batches

_FIELDS = {"truth": "score", "carried_out": "carried_out", "preserved": "preserved"}
"""Metric to the field of `resources.mini.edits.EditTruth`."""

_DESCRIPTIONS = {
    "truth": ("truth", "by rule: both of the below as one score"),
    "carried_out": ("carried out", "by rule: how far the instruction is carried out"),
    "preserved": ("rest preserved", "by rule: how far the rest is preserved"),
}

METRICS = tuple(
    Metric(
        name=name,
        label=label,
        description=f"{description}, 0 to 1",
        low=0,
        high=1,
        role="ground truth",
        scorer=f"{__name__}:score",
        order=order,
    )
    for order, (name, (label, description)) in enumerate(_DESCRIPTIONS.items(), 1)
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the ground truth of finished edits."""
    images = (batch.images(kind, np.asarray) for kind in ("source", "edited"))
    truths = map_in_batches(PAIRS_PER_CALL, _truths, *images, batch.instructions)
    values = {
        name: [truth if isinstance(truth, FlexyError) else float(getattr(truth, field)) for truth in truths]
        for name, field in _FIELDS.items()
    }
    return [BatchScores(values, "mini rule")]


def _truths(sources: Sequence[Any], edited: Sequence[Any], instructions: Sequence[str]) -> list[Any]:
    from resources.mini.edits import edit_truth

    truths: list[Any] = []
    for source, image, instruction in zip(sources, edited, instructions, strict=True):
        try:
            truths.append(edit_truth(source, instruction, image))
        except ValueError as error:
            truths.append(FlexyError(str(error)))
    return truths
