"""Scores edits by the metrics that `resources.metrics.edits` declares."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID

from flexy_assets.scoring.candidates import WorkBatch, score_candidates
from flexy_assets.scoring.work import Work
from flexy_assets.storage.edits import CandidateRow, EditTaskRow
from flexy_assets.storage.embeddings import read_image_vectors, record_image_embeddings
from resources.errors import FlexyError
from resources.metrics import Role
from resources.metrics.edits import METRICS
from resources.metrics.scoring import keep_image, map_in_batches
from resources.models import registry

EDIT_METRICS: Final = tuple(name for name, metric in METRICS.items() if metric.scorer)
"""The names of the scores of an edit."""

ImageRow = EditTaskRow | CandidateRow
FinishedCandidates = dict[tuple[UUID, str, int, str], CandidateRow]  # by task, method, budget and name


class EditBatch(WorkBatch):
    """Candidates with the images `edited`, `source` and `parent`; CLIP vectors are stored."""

    def __init__(
        self, work: Work, candidates: Sequence[CandidateRow], tasks: Sequence[EditTaskRow], finished: FinishedCandidates
    ) -> None:
        super().__init__(work, candidates, tasks)
        keys = ((c.task, c.method, c.budget, c.parent or "") for c in candidates)
        self._rows: dict[str, Sequence[ImageRow | None]] = {
            "edited": candidates,
            "source": self.tasks,
            "parent": [finished.get(key) for key in keys],
        }

    def images(self, kind: str, prepare: Callable[[Any], Any] = keep_image) -> list[Any]:
        rows = self._rows[kind]
        images = _read_images(self.work, [row for row in rows if row], prepare)
        return [images[row.id] if row else None for row in rows]

    def image_vectors(self, kind: str) -> list[Any]:
        rows = self._rows[kind]
        vectors = _read_vectors(self.work, [row for row in rows if row])
        return [vectors[row.id] if row else None for row in rows]


def score_selecting(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> None:
    """Compute the missing scores that searches select by; the time counts as cost of the candidates."""
    _score(work, tasks, candidates, "selecting")


def score_independent(work: Work, tasks: Sequence[EditTaskRow], winners: Sequence[CandidateRow]) -> None:
    """Compute the missing scores of winners that have no part in the selection; by a judge if one is configured."""
    _score(work, tasks, winners, "independent")


def score_ground_truth(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> None:
    """Compute the missing ground truth of finished candidates of the drawn world."""
    _score(work, tasks, [candidate for candidate in candidates if candidate.finished], "ground truth")


def has_ground_truth(editor: str) -> bool:
    """Return whether this editor's images are of the drawn world."""
    return registry.MODELS[editor].embedded is not None


def _score(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow], role: Role) -> None:
    """Compute the missing scores of one role; parents are among the candidates."""
    finished = {(c.task, c.method, c.budget, c.name): c for c in candidates if c.finished}
    metrics = [metric for metric in METRICS.values() if metric.role == role]
    make_batch = partial(EditBatch, work, tasks=tasks, finished=finished)
    # A search has a bar of its own.
    progress = "" if role == "selecting" else f"{role} scores"
    score_candidates(candidates, metrics, make_batch, role == "selecting", progress)


def _read_images(work: Work, rows: Sequence[ImageRow], prepare: Callable[[Any], Any]) -> dict[UUID, Any]:
    """Return each row's prepared image or `FlexyError`; each file is read once."""
    distinct = {row.id: row for row in rows}
    images = work.store.read_many([(row.image_path or "", row.image_sha256) for row in distinct.values()])
    return {
        key: image if isinstance(image, FlexyError) else prepare(image)
        for key, image in zip(distinct, images, strict=True)
    }


def _read_vectors(work: Work, rows: Sequence[ImageRow]) -> dict[UUID, Any]:
    """Return each row's CLIP vector, read from the table or computed and stored, or a `FlexyError`."""
    fingerprint, ids = work.fingerprint("clip"), [row.id for row in rows]
    with work.database.begin(reading=True) as connection:
        vectors: dict[UUID, Any] = dict(read_image_vectors(connection, fingerprint, ids))
    missing = [row for row in rows if row.id not in vectors]
    if missing:
        clip = work.slot.get(work.model("clip"))
        images = _read_images(work, missing, clip.prepare)
        computed = dict(zip(images, map_in_batches(clip.batch_size, clip.images, list(images.values())), strict=True))
        valid = {key: vector for key, vector in computed.items() if not isinstance(vector, FlexyError)}
        with work.database.begin() as connection:
            record_image_embeddings(connection, fingerprint, valid, [])
        vectors |= computed
    return vectors
