"""Identity, quality and consistency by a vision-language judge, where one is configured."""

from __future__ import annotations

from typing import Any

from resources.errors import FlexyError
from resources.metrics import Metric
from resources.metrics.scoring import BatchScores, CandidateBatch

_SCALES = ("identity", "quality", "consistency")

METRICS = tuple(
    Metric(
        name=f"judge_{scale}",
        label=f"judge {scale}",
        description=f"a judge's score for {scale}, 0 to 10",
        low=0,
        high=10,
        role="selecting",
        scorer=f"{__name__}:score",
        order=order,
        by_judge=True,
    )
    for order, scale in enumerate(_SCALES, 4)
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the judge's scores (`resources.judges.questions.inpainting_question`); none without a judge."""
    if batch.judge is None:
        return []
    rows = zip(*(batch.images(kind) for kind in ("character", "before", "edited", "mask")), strict=True)
    scores = [_judge(batch, row) for row in rows]
    values = {metric.name: column for metric, column in zip(METRICS, zip(*scores, strict=True), strict=True)}
    return [BatchScores(values, batch.judge.fingerprint)]


def _judge(batch: CandidateBatch, images: tuple[Any, ...]) -> list[Any]:
    """Return the scores of one candidate, in the order of the metrics."""
    from resources.judges import questions

    for image in images:
        if isinstance(image, FlexyError):
            return [image] * len(_SCALES)
    assert batch.judge is not None
    answer = batch.judge.ask(questions.inpainting_question(), list(images))
    unanswered = FlexyError(answer.error or "the judge did not answer")
    return [answer.values[scale] if answer.values else unanswered for scale in _SCALES]
