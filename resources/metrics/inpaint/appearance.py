"""Quality of the surroundings of the mask, and their consistency with the original."""

from resources.metrics import Metric, SelectingMetric
from resources.metrics.scoring import (
    BatchScores,
    CandidateBatch,
    cosine_similarities,
    map_in_batches,
    map_rows,
    score_with_head,
)

METRICS = (
    SelectingMetric(
        "quality", "quality", "aesthetic V2 of the surroundings of the mask, about 1 to 10", -5, 15, order=2
    ),
    Metric(
        name="consistency",
        label="consistency",
        description="5 × the cosine (CLIP) plus 5 × (1 − LPIPS) with the original surroundings",
        low=-50,
        high=10,
        role="selecting",
        order=3,
    ),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return aesthetic V2, and the mean of CLIP's and LPIPS's similarity with the original times 10."""
    edited, before = (batch.image_vectors(kind) for kind in ("edited", "before"))
    quality = score_with_head(batch.model("aesthetic_v2"), edited)
    cosines = cosine_similarities(edited, before)
    model = batch.model("lpips")
    images = (batch.images(kind, model.prepare) for kind in ("edited", "before"))
    distances = map_in_batches(model.batch_size, model.distances, *images)
    consistency = map_rows(lambda cosine, distance: 5 * (cosine + 1 - float(distance)), cosines, distances)
    return [
        BatchScores({"quality": quality}, batch.fingerprint("aesthetic_v2")),
        BatchScores({"consistency": consistency}, batch.fingerprint("clip", "lpips")),
    ]
