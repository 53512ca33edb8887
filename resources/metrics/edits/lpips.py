"""LPIPS between the edited image, its source and its parent."""

from functools import partial

from resources.metrics import Metric
from resources.metrics.scoring import BatchScores, CandidateBatch, map_in_batches

_metric = partial(Metric, low=0, high=10, higher_is_better=False)

METRICS = (
    _metric("lpips", "LPIPS", "perceptual distance from the source, 0 for the same image", role="selecting", order=14),
    _metric("parent_lpips", "LPIPS to parent", "perceptual distance from its parent's image", order=17),
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
