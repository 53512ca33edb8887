"""Measures refined faces: who they are, how good they look, how well they fit; by models that are here and by a judge.

Every score is 0 to 10 and says by its metric's name who gave it; one that could not be had is NULL with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flexy_assets.edits.metrics import cosine_similarities, map_in_batches, record_metric_outcomes
from flexy_assets.edits.search.canvas import Canvas
from flexy_assets.inpaint.face_swap import face_at_mask
from flexy_assets.scoring.missing_scores import CHUNK_IMAGES
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits, labels
from flexy_assets.storage.edits import CandidateRow, EditTaskRow
from resources.errors import FlexyError
from resources.faces import Face, identity_similarity, largest_face
from resources.models import registry

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL_METRICS: Final = ("identity", "quality", "consistency")
"""By models: 10 × ArcFace's cosine of the face at the mask and the character's, below 0 as 0; aesthetic V2's mark of
what lies around the mask; 5 × its cosine (CLIP) and its likeness (1 − LPIPS) with what was there before."""

JUDGE_METRICS: Final = tuple(f"judge_{metric}" for metric in MODEL_METRICS)
"""The same by a vision-language judge, where one is configured: `resources.judges.questions.inpainting_question`."""

INPAINT_METRICS: Final = (*MODEL_METRICS, *JUDGE_METRICS, "potential")


@dataclass(frozen=True, eq=False)
class CandidateImages:
    """A candidate: the whole of its picture, what lies around the mask before and after, and the character."""

    candidate: CandidateRow
    canvas: Canvas
    whole: Image
    before: Image
    after: Image
    character: Image
    character_path: str


def score_candidates(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> None:
    """Measure the candidates that lack it, a chunk at a time; what cannot be measured is recorded with its reason."""
    lacking = [c for c in candidates if c.finished and any(metric not in c.scores for metric in MODEL_METRICS)]
    for first in range(0, len(lacking), CHUNK_IMAGES):
        chunk = lacking[first : first + CHUNK_IMAGES]
        seen = _read_candidate_images(work, tasks, chunk)
        _score_identity(work, chunk, seen)
        _score_appearance(work, chunk, seen)


def _read_candidate_images(
    work: Work, tasks: Sequence[EditTaskRow], chunk: Sequence[CandidateRow]
) -> list[CandidateImages | FlexyError]:
    """Each candidate, or why it cannot be looked at."""
    by_id = {task.id: task for task in tasks}
    wanted = {by_id[candidate.task].label_task for candidate in chunk}
    with work.database.begin(reading=True) as connection:
        scenes = labels.label_tasks_by_id(connection, [task for task in wanted if task])
    found: list[CandidateImages | FlexyError] = []
    for candidate in chunk:
        task = by_id[candidate.task]
        try:
            if candidate.error:
                raise FlexyError(candidate.error)
            scene = scenes.get(task.label_task) if task.label_task else None
            if scene is None or scene.image_path is None or task.mask_path is None or task.reference_path is None:
                raise FlexyError("its scene, mask or character is no longer in this database: import the task again")
            canvas = Canvas.read(task, work.store)
            whole = work.store.read(candidate.image_path or "", candidate.image_sha256)
            before = canvas.crop(work.store.read(scene.image_path, scene.image_sha256))
            character = work.store.read(task.reference_path, task.reference_sha256)
            found.append(
                CandidateImages(candidate, canvas, whole, before, canvas.crop(whole), character, task.reference_path)
            )
        except FlexyError as error:
            found.append(error)
    return found


def _score_identity(work: Work, chunk: Sequence[CandidateRow], seen: Sequence[CandidateImages | FlexyError]) -> None:
    model = registry.find_face_finder(work.settings)
    finder = work.slot.get(model)
    characters: dict[str, Face | None] = {}

    def value(one: CandidateImages) -> float | FlexyError:
        if one.character_path not in characters:
            characters[one.character_path] = largest_face(finder.faces(one.character))
        theirs, mask = characters[one.character_path], one.canvas.mask
        face = face_at_mask(finder.faces(one.whole), mask) if mask is not None else None
        if face is None or theirs is None:
            return FlexyError(f"no face is found {'in the character’s picture' if theirs is None else 'at the mask'}")
        return 10 * max(identity_similarity(face, theirs), 0.0)

    values = [one if isinstance(one, FlexyError) else value(one) for one in seen]
    record_metric_outcomes(work, model.fingerprint, [("identity", *pair) for pair in zip(chunk, values, strict=True)])


def _score_appearance(work: Work, chunk: Sequence[CandidateRow], seen: Sequence[CandidateImages | FlexyError]) -> None:
    """Quality and consistency."""

    def prepared(prepare: Any) -> tuple[list[Any], list[Any]]:
        after = [one if isinstance(one, FlexyError) else prepare(one.after) for one in seen]
        return after, [one if isinstance(one, FlexyError) else prepare(one.before) for one in seen]

    def pairs(left: list[Any], right: list[Any]) -> list[tuple[Any, Any]]:
        return list(zip(left, right, strict=True))

    clip = work.slot.get(work.model("clip"))
    after, before = (
        map_in_batches(clip.batch_size, clip.images, [(picture,) for picture in pictures])
        for pictures in prepared(clip.prepare)
    )
    alike = map_in_batches(CHUNK_IMAGES, cosine_similarities, pairs(after, before))
    head = work.slot.get(work.model("aesthetic_v2"))
    marks = map_in_batches(
        CHUNK_IMAGES, lambda vectors: head.score_embeddings(np.stack(vectors)), [(vector,) for vector in after]
    )
    lpips = work.slot.get(work.model("lpips"))
    apart = map_in_batches(lpips.batch_size, lpips.distances, pairs(*prepared(lpips.prepare)))
    fits = [
        next((value for value in pair if isinstance(value, FlexyError)), None) or 5 * (pair[0] + 1 - float(pair[1]))
        for pair in zip(alike, apart, strict=True)
    ]
    record_metric_outcomes(
        work, work.fingerprint("aesthetic_v2"), [("quality", *pair) for pair in zip(chunk, marks, strict=True)]
    )
    mark = f"{work.fingerprint('clip')}+{work.model('lpips').fingerprint}"
    record_metric_outcomes(work, mark, [("consistency", *pair) for pair in zip(chunk, fits, strict=True)])


def judge_candidates(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> str | None:
    """Have the judge read the finished candidates that it has not answered for, one by one.

    What another judge said of them gives way: marks of two judges cannot be compared. Returns the judge's mark, None
    where none is configured.
    """
    from resources.judges import make_judge, questions

    asked = make_judge(work.settings, work.slot)
    if asked is None:
        return None
    with work.database.begin(reading=True) as connection:
        answered = edits.candidates_scored_by(
            connection, {task.batch for task in tasks}, JUDGE_METRICS[0], asked.fingerprint
        )
    for candidate in candidates:
        if not candidate.finished or candidate.id in answered:
            continue
        (one,) = _read_candidate_images(work, tasks, [candidate])
        values: list[Any] = [one] * len(JUDGE_METRICS)
        if isinstance(one, CandidateImages):
            stencil = one.canvas.cropped_mask
            assert stencil is not None
            verdict = asked.ask(questions.inpainting_question(), [one.character, one.before, one.after, stencil])
            silent = FlexyError(verdict.error or "the judge did not answer")
            values = [verdict.values[metric] if verdict.values else silent for metric in MODEL_METRICS]
        record_metric_outcomes(
            work,
            asked.fingerprint,
            [(metric, candidate, value) for metric, value in zip(JUDGE_METRICS, values, strict=True)],
        )
    return asked.fingerprint
