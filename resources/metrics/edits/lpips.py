"""LPIPS between the edited image, its source and its parent."""

from __future__ import annotations

from resources.metrics import Metric
from resources.metrics.scoring import BatchScores, CandidateBatch, map_in_batches

_SCORER = f"{__name__}:score"

METRICS = (
    Metric(
        name="lpips",
        label="LPIPS",
        description="perceptual distance from the source, 0 for the same image",
        low=0,
        high=10,
        higher_is_better=False,
        role="selecting",
        scorer=_SCORER,
        order=14,
    ),
    Metric(
        name="parent_lpips",
        label="LPIPS to parent",
        description="perceptual distance from its parent's image",
        low=0,
        high=10,
        higher_is_better=False,
        scorer=_SCORER,
        order=17,
    ),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the distances from source and parent."""
    model = batch.model("lpips")
    edited = batch.images("edited", model.prepare)
    values = {
        name: map_in_batches(model.batch_size, model.distances, edited, batch.images(kind, model.prepare))
        for name, kind in (("lpips", "source"), ("parent_lpips", "parent"))
    }
    return [BatchScores(values, batch.fingerprint("lpips"))]
