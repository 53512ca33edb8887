"""The scores of a vision-language judge, where one is configured (`resources.judges.questions`)."""

from __future__ import annotations

from typing import Any

from resources.errors import FlexyError
from resources.metrics import Metric
from resources.metrics.scoring import BatchScores, CandidateBatch

_DESCRIPTIONS = {
    "judge_following": ("judge following", "a judge's score for following the instruction"),
    "judge_consistency": ("judge consistency", "a judge's score for preserving the rest"),
    "judge_overall": ("judge overall", "a judge's overall score"),
}

METRICS = tuple(
    Metric(
        name=name,
        label=label,
        description=f"{description}, 0 to 10",
        low=0,
        high=10,
        role="independent",
        scorer=f"{__name__}:score",
        order=order,
        by_judge=True,
    )
    for order, (name, (label, description)) in enumerate(_DESCRIPTIONS.items(), 23)
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the judge's scores; none without a judge."""
    if batch.judge is None:
        return []
    rows = zip(batch.images("source"), batch.images("edited"), batch.instructions, strict=True)
    scores = [_judge(batch, *row) for row in rows]
    return [BatchScores(dict(zip(_DESCRIPTIONS, zip(*scores, strict=True), strict=True)), batch.judge.fingerprint)]


def _judge(batch: CandidateBatch, source: Any, edited: Any, instruction: str) -> list[Any]:
    """Return the scores of one edit, in the order of the metrics."""
    from resources.judges import questions

    for image in (source, edited):
        if isinstance(image, FlexyError):
            return [image] * 3
    assert batch.judge is not None
    edit = batch.judge.ask(questions.editing_question(instruction), [source, edited])
    quality = batch.judge.ask(questions.quality_question(), [edited])
    unanswered = FlexyError(edit.error or quality.error or "the judge did not answer")
    scores: list[Any] = [unanswered] * 3
    if edit.values:
        scores[:2] = [edit.values["prompt_following"], edit.values["consistency"]]
    if edit.values and quality.values:
        scores[2] = questions.overall_score(edit.values, quality.values)
    return scores
