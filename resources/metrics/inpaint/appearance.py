"""Quality of the surroundings of the mask, and their consistency with the original."""

from __future__ import annotations

from resources.errors import FlexyError
from resources.metrics import Metric
from resources.metrics.scoring import (
    PAIRS_PER_CALL,
    BatchScores,
    CandidateBatch,
    cosine_similarities,
    map_in_batches,
    score_with_head,
)

METRICS = (
    Metric(
        name="quality",
        label="quality",
        description="aesthetic V2 of the surroundings of the mask, about 1 to 10",
        low=-5,
        high=15,
        role="selecting",
        scorer=f"{__name__}:score",
        order=2,
    ),
    Metric(
        name="consistency",
        label="consistency",
        description="5 × the cosine (CLIP) plus 5 × (1 − LPIPS) with the original surroundings",
        low=-50,
        high=10,
        role="selecting",
        scorer=f"{__name__}:score",
        order=3,
    ),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return aesthetic V2, and the mean of CLIP's and LPIPS's similarity with the original times 10."""
    edited, before = (batch.image_vectors(kind) for kind in ("edited", "before"))
    quality = score_with_head(batch.model("aesthetic_v2"), edited)
    cosines = map_in_batches(PAIRS_PER_CALL, cosine_similarities, edited, before)
    model = batch.model("lpips")
    images = (batch.images(kind, model.prepare) for kind in ("edited", "before"))
    distances = map_in_batches(model.batch_size, model.distances, *images)
    consistency = [
        next((value for value in pair if isinstance(value, FlexyError)), None) or 5 * (pair[0] + 1 - float(pair[1]))
        for pair in zip(cosines, distances, strict=True)
    ]
    return [
        BatchScores({"quality": quality}, batch.fingerprint("aesthetic_v2")),
        BatchScores({"consistency": consistency}, batch.fingerprint("clip", "lpips")),
    ]
