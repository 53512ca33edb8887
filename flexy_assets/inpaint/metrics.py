"""Scores refined faces by the metrics that `resources.metrics.inpaint` declares, of models and of a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from flexy_assets.edits.search.canvas import Canvas
from flexy_assets.scoring.candidates import WorkBatch, score_candidates
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits, labels
from flexy_assets.storage.edits import CandidateRow, EditTaskRow
from flexy_assets.storage.labels import LabelTaskRow
from resources.errors import FlexyError
from resources.judges import make_judge
from resources.metrics.inpaint import METRICS
from resources.metrics.scoring import keep_image

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL_METRICS: Final = tuple(name for name, metric in METRICS.items() if metric.scorer and not metric.by_judge)
JUDGE_METRICS: Final = tuple(name for name, metric in METRICS.items() if metric.by_judge)


@dataclass(frozen=True, eq=False)
class CandidateImages:
    """The edited scene and its canvas; with the scene before, the surroundings of the mask; and the character."""

    canvas: Canvas
    scene: Image
    original: Image
    character: Image

    def image(self, kind: str) -> Any:
        """Return the image of one kind; see `resources.metrics.scoring.CandidateBatch`."""
        if kind == "edited":
            return self.canvas.crop(self.scene)
        if kind == "before":
            return self.canvas.crop(self.original)
        if kind == "mask":
            return self.canvas.cropped_mask
        return {"scene": self.scene, "scene_mask": self.canvas.mask_image, "character": self.character}[kind]


class FaceBatch(WorkBatch):
    """Candidates of inpainting with their images."""

    def images(self, kind: str, prepare: Callable[[Any], Any] = keep_image) -> list[Any]:
        return [each if isinstance(each, FlexyError) else prepare(each.image(kind)) for each in self._images]

    @cached_property
    def _images(self) -> list[CandidateImages | FlexyError]:
        """The images of each candidate, or why they cannot be read; a character image is read once."""
        ids = {task.label_task for task in self.tasks}
        with self.work.database.begin(reading=True) as connection:
            label_tasks = labels.label_tasks_by_id(connection, [task for task in ids if task])
        characters: dict[str, Image] = {}
        images: list[CandidateImages | FlexyError] = []
        for candidate, task in zip(self.candidates, self.tasks, strict=True):
            label_task = label_tasks.get(task.label_task) if task.label_task else None
            try:
                images.append(self._read(candidate, task, label_task, characters))
            except FlexyError as error:
                images.append(error)
        return images

    def _read(
        self, candidate: CandidateRow, task: EditTaskRow, label_task: LabelTaskRow | None, characters: dict[str, Image]
    ) -> CandidateImages:
        store = self.work.store
        if candidate.error:
            raise FlexyError(candidate.error)
        if not label_task or label_task.image_path is None or task.mask_path is None or task.reference_path is None:
            raise FlexyError("scene, mask or character is missing in this database: import the task again")
        if task.reference_path not in characters:
            characters[task.reference_path] = store.read(task.reference_path, task.reference_sha256)
        return CandidateImages(
            Canvas.read(task, store),
            store.read(candidate.image_path or "", candidate.image_sha256),
            store.read(label_task.image_path, label_task.image_sha256),
            characters[task.reference_path],
        )


def score_by_models(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> None:
    """Compute the missing scores by models of finished candidates."""
    _score(work, tasks, [candidate for candidate in candidates if candidate.finished], MODEL_METRICS)


def judge_candidates(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> str | None:
    """Compute missing scores by the judge and replace another judge's; return its fingerprint, None without a judge."""
    judge = make_judge(work.settings, work.slot)
    if judge is None:
        return None
    judged = judged_candidates(work, tasks, judge.fingerprint)
    pending = [replace(each, scores={}) for each in candidates if each.finished and each.id not in judged]
    _score(work, tasks, pending, JUDGE_METRICS, "judged")
    return judge.fingerprint


def judged_candidates(work: Work, tasks: Sequence[EditTaskRow], judge: str) -> set[UUID]:
    """Return the candidates of the tasks' partitions that this judge, by its fingerprint, has scored."""
    batches = {task.batch for task in tasks}
    with work.database.begin(reading=True) as connection:
        return edits.candidates_scored_by(connection, batches, JUDGE_METRICS[0], judge)


def _score(
    work: Work,
    tasks: Sequence[EditTaskRow],
    candidates: Sequence[CandidateRow],
    names: Sequence[str],
    progress: str = "",
) -> None:
    metrics = [METRICS[name] for name in names]
    score_candidates(candidates, metrics, lambda chunk: FaceBatch(work, chunk, tasks), progress=progress)
