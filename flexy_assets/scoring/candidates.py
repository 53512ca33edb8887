"""Scores the candidates of edits and inpainting; each chunk is committed before the next one starts."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pkgutil import resolve_name
from typing import Any

from flexy_assets.reporting.progress import progress_bar
from flexy_assets.scoring.missing_scores import CHUNK_IMAGES
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from flexy_assets.storage.edits import CandidateRow, EditTaskRow
from flexy_assets.storage.scores import ScoredImage, record_outcomes
from resources.chunks import split_chunks
from resources.errors import FlexyError
from resources.judges import Judge, make_judge
from resources.metrics import Metric
from resources.metrics.scoring import BatchScores, keep_image, map_in_batches
from resources.models.slot import ModelSlot
from resources.settings import Settings


class WorkBatch(ABC):
    """A `resources.metrics.scoring.CandidateBatch` over `work`; a subclass reads the images of each kind."""

    def __init__(self, work: Work, candidates: Sequence[CandidateRow], tasks: Sequence[EditTaskRow]) -> None:
        by_id = {task.id: task for task in tasks}
        self.work = work
        self.candidates = candidates
        self.tasks = [by_id[candidate.task] for candidate in candidates]

    @property
    def settings(self) -> Settings:
        return self.work.settings

    @property
    def slot(self) -> ModelSlot:
        return self.work.slot

    @cached_property
    def judge(self) -> Judge | None:
        return make_judge(self.settings, self.slot)

    @property
    def instructions(self) -> list[str]:
        return [task.prompt for task in self.tasks]

    @abstractmethod
    def images(self, kind: str, prepare: Callable[[Any], Any] = keep_image) -> list[Any]:
        """Return the prepared image of each candidate, a `FlexyError` or None."""

    def image_vectors(self, kind: str) -> list[Any]:
        """Return the CLIP vector of each candidate's image, a `FlexyError` or None."""
        clip = self.model("clip")
        return map_in_batches(clip.batch_size, clip.images, self.images(kind, clip.prepare))

    def instruction_vectors(self) -> list[Any]:
        vectors = self.work.embed_prompts(set(self.instructions))
        return [vectors[instruction] for instruction in self.instructions]

    def model(self, name: str) -> Any:
        return self.work.slot.get(self.work.model(name))

    def fingerprint(self, *names: str) -> str:
        first, *others = names
        return "+".join([self.work.fingerprint(first), *(self.work.model(name).fingerprint for name in others)])


def score_candidates(
    candidates: Sequence[CandidateRow],
    metrics: Iterable[Metric],
    make_batch: Callable[[Sequence[CandidateRow]], WorkBatch],
    record_time: bool = False,
    progress: str = "",
) -> None:
    """Compute the missing scores of these metrics; an error is recorded as the outcome.

    Metrics with the same scorer are computed together, for candidates without an outcome of the first one. With
    `record_time` the duration is recorded as part of the candidates' cost; `progress` names a bar in the terminal.
    """
    by_scorer: dict[str, list[Metric]] = {}
    for metric in metrics:
        if metric.scorer:
            by_scorer.setdefault(metric.scorer, []).append(metric)
    for scorer, family in by_scorer.items():
        compute: Callable[[WorkBatch], list[BatchScores]] = resolve_name(scorer)
        pending = _pending(candidates, family)
        with progress_bar(progress, len(pending) if progress else 0) as bar:
            for chunk in split_chunks(pending, 1 if family[0].by_judge else CHUNK_IMAGES):
                started = time.perf_counter()
                batch = make_batch(chunk)
                scores = compute(batch)
                if not scores:
                    break
                for of_scorer in scores:
                    _record_scores(batch.work, chunk, of_scorer)
                if record_time:
                    milliseconds = 1000 * (time.perf_counter() - started) / len(chunk)
                    with batch.work.database.begin() as connection:
                        edits.record_scoring_time(connection, [candidate.id for candidate in chunk], milliseconds)
                bar.update(len(chunk))


def _record_scores(work: Work, candidates: Sequence[CandidateRow], scores: BatchScores) -> None:
    with work.database.begin() as connection:
        for metric, values in scores.values.items():
            pairs = zip(candidates, values, strict=True)
            outcomes = [_outcome(candidate, value) for candidate, value in pairs if value is not None]
            record_outcomes(connection, metric, scores.fingerprint, outcomes, keep_values=True)


def _pending(candidates: Sequence[CandidateRow], family: Sequence[Metric]) -> list[CandidateRow]:
    """Return the candidates without an outcome of a scorer's metrics; of a judge's, also those with an error."""
    if family[0].by_judge:
        return [c for c in candidates if any(c.scores.get(metric.name) is None for metric in family)]
    return [candidate for candidate in candidates if family[0].name not in candidate.scores]


def _outcome(candidate: CandidateRow, value: Any) -> ScoredImage:
    error = candidate.error or (str(value) if isinstance(value, FlexyError) else None)
    return ScoredImage(candidate.id, None, error) if error else ScoredImage.of(candidate.id, float(value))
