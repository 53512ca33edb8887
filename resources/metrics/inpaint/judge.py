"""Identity, quality and consistency by a vision-language judge, where one is configured."""

from operator import itemgetter
from typing import Any

from resources.errors import FlexyError
from resources.metrics import SelectingMetric
from resources.metrics.scoring import BatchScores, CandidateBatch, map_rows

_SCALES = ("identity", "quality", "consistency")

METRICS = tuple(
    SelectingMetric(
        f"judge_{scale}", f"judge {scale}", f"a judge's score for {scale}, 0 to 10", 0, 10, order=order, by_judge=True
    )
    for order, scale in enumerate(_SCALES, 4)
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the judge's scores (`resources.judges.questions.inpainting_question`); none without a judge."""
    judge = batch.judge
    if judge is None:
        return []
    from resources.judges.questions import inpainting_question

    def ask(*images: Any) -> Any:
        judgement = judge.ask(inpainting_question(), images)
        return judgement.values or dict.fromkeys(_SCALES, FlexyError(judgement.error or "the judge did not answer"))

    scores = map_rows(ask, *(batch.images(kind) for kind in ("character", "before", "edited", "mask")))
    values = {f"judge_{scale}": map_rows(itemgetter(scale), scores) for scale in _SCALES}
    return [BatchScores(values, judge.fingerprint)]
