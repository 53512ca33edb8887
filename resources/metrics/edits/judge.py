"""The scores of a vision-language judge, where one is configured (`resources.judges.questions`)."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from resources.errors import FlexyError
from resources.metrics import Metric
from resources.metrics.scoring import BatchScores, CandidateBatch, map_rows

if TYPE_CHECKING:
    from resources.judges import Judge

_metric = partial(Metric, low=0, high=10, role="independent", by_judge=True)

METRICS = (
    _metric("judge_following", "judge following", "a judge's score for following the instruction, 0 to 10", order=23),
    _metric("judge_consistency", "judge consistency", "a judge's score for preserving the rest, 0 to 10", order=24),
    _metric("judge_overall", "judge overall", "a judge's overall score, 0 to 10", order=25),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the judge's scores; none without a judge."""
    if batch.judge is None:
        return []
    images = (batch.images(kind) for kind in ("source", "edited"))
    scores = map_rows(partial(_judge, batch.judge), *images, batch.instructions)
    values = {metric.name: map_rows(itemgetter(metric.name), scores) for metric in METRICS}
    return [BatchScores(values, batch.judge.fingerprint)]


def _judge(judge: Judge, source: Any, edited: Any, instruction: str) -> dict[str, Any]:
    """Return the scores of one edit by metric."""
    from resources.judges import questions

    edit = judge.ask(questions.editing_question(instruction), [source, edited])
    quality = judge.ask(questions.quality_question(), [edited])
    unanswered = FlexyError(edit.error or quality.error or "the judge did not answer")
    scores: dict[str, Any] = {metric.name: unanswered for metric in METRICS}
    if edit.values:
        scores |= {"judge_following": edit.values["prompt_following"], "judge_consistency": edit.values["consistency"]}
        if quality.values:
            scores["judge_overall"] = questions.overall_score(edit.values, quality.values)
    return scores
