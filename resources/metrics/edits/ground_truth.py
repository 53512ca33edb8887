"""The ground truth of edits in the drawn world, by its rules."""

from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from resources.errors import FlexyError
from resources.metrics import Metric
from resources.metrics.scoring import BatchScores, CandidateBatch, map_rows

_metric = partial(Metric, low=0, high=1, role="ground truth")

METRICS = (
    _metric("truth", "truth", "by rule: both of the below as one score, 0 to 1", order=1),
    _metric("carried_out", "carried out", "by rule: how far the instruction is carried out, 0 to 1", order=2),
    _metric("preserved", "rest preserved", "by rule: how far the rest is preserved, 0 to 1", order=3),
)

_FIELDS = {"truth": "score", "carried_out": "carried_out", "preserved": "preserved"}
"""Metric to the field of `resources.mini.edits.EditTruth`."""


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the ground truth of finished edits."""
    images = (batch.images(kind, np.asarray) for kind in ("source", "edited"))
    truths = map_rows(_truth, *images, batch.instructions)
    values = {name: map_rows(attrgetter(field), truths) for name, field in _FIELDS.items()}
    return [BatchScores(values, "mini rule")]


def _truth(source: Any, edited: Any, instruction: str) -> Any:
    from resources.mini.edits import edit_truth

    try:
        return edit_truth(source, instruction, edited)
    except ValueError as error:
        return FlexyError(str(error))
