"""Measures refined faces: who they are, how good they look, how well they fit; by models that are here and by a judge.

Every score is 0 to 10 and says by its metric's name who gave it; one that could not be had is NULL with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flexy_assets.edits.canvas import Canvas
from flexy_assets.edits.metrics import cosines, mapped, record
from flexy_assets.inpaint.face_swap import at_mask
from flexy_assets.scoring.missing_scores import CHUNK, Scoring
from flexy_assets.storage import edits, labels
from flexy_assets.storage.edits import Candidate, Task
from resources.errors import FlexyError
from resources.faces import Face, identity, largest
from resources.models import registry

if TYPE_CHECKING:
    from PIL.Image import Image

MEASURED: Final = ("identity", "quality", "consistency")
"""By models: 10 × ArcFace's cosine of the face at the mask and the character's, below 0 as 0; aesthetic V2's mark of
what lies around the mask; 5 × its cosine (CLIP) and its likeness (1 − LPIPS) with what was there before."""

JUDGED: Final = tuple(f"judge_{metric}" for metric in MEASURED)
"""The same by a vision-language judge, where one is configured: `resources.judges.questions.inpainting`."""

METRICS: Final = (*MEASURED, *JUDGED, "potential")


@dataclass(frozen=True, eq=False)
class Seen:
    """A candidate: the whole of its picture, what lies around the mask before and after, and the character."""

    candidate: Candidate
    canvas: Canvas
    whole: Image
    before: Image
    after: Image
    character: Image
    character_path: str


def measure(work: Scoring, tasks: Sequence[Task], candidates: Sequence[Candidate]) -> None:
    """Measure the candidates that lack it, a chunk at a time; what cannot be measured is recorded with its reason."""
    lacking = [c for c in candidates if c.until == c.path and any(metric not in c.scores for metric in MEASURED)]
    for first in range(0, len(lacking), CHUNK):
        chunk = lacking[first : first + CHUNK]
        seen = _look(work, tasks, chunk)
        _identify(work, chunk, seen)
        _appraise(work, chunk, seen)


def _look(work: Scoring, tasks: Sequence[Task], chunk: Sequence[Candidate]) -> list[Seen | FlexyError]:
    """Each candidate, or why it cannot be looked at."""
    by_id = {task.id: task for task in tasks}
    wanted = {by_id[candidate.task].label_task for candidate in chunk}
    with work.database.begin(reading=True) as connection:
        scenes = labels.of(connection, [task for task in wanted if task])
    found: list[Seen | FlexyError] = []
    for candidate in chunk:
        task = by_id[candidate.task]
        try:
            if candidate.error:
                raise FlexyError(candidate.error)
            scene = scenes.get(task.label_task) if task.label_task else None
            if scene is None or scene.image_path is None or task.mask_path is None or task.reference_path is None:
                raise FlexyError("its scene, mask or character is no longer in this database: import the task again")
            canvas = Canvas.of(task, work.store)
            whole = work.store.read(candidate.image_path or "", candidate.image_sha256)
            before = canvas.shown(work.store.read(scene.image_path, scene.image_sha256))
            character = work.store.read(task.reference_path, task.reference_sha256)
            found.append(Seen(candidate, canvas, whole, before, canvas.shown(whole), character, task.reference_path))
        except FlexyError as error:
            found.append(error)
    return found


def _identify(work: Scoring, chunk: Sequence[Candidate], seen: Sequence[Seen | FlexyError]) -> None:
    model = registry.face_finder(work.settings)
    finder = work.slot.get(model)
    characters: dict[str, Face | None] = {}

    def value(one: Seen) -> float | FlexyError:
        if one.character_path not in characters:
            characters[one.character_path] = largest(finder.faces(one.character))
        theirs, mask = characters[one.character_path], one.canvas.mask
        face = at_mask(finder.faces(one.whole), mask) if mask is not None else None
        if face is None or theirs is None:
            return FlexyError(f"no face is found {'in the character’s picture' if theirs is None else 'at the mask'}")
        return 10 * max(identity(face, theirs), 0.0)

    values = [one if isinstance(one, FlexyError) else value(one) for one in seen]
    record(work, model.fingerprint, [("identity", *pair) for pair in zip(chunk, values, strict=True)])


def _appraise(work: Scoring, chunk: Sequence[Candidate], seen: Sequence[Seen | FlexyError]) -> None:
    """Quality and consistency."""

    def prepared(prepare: Any) -> tuple[list[Any], list[Any]]:
        after = [one if isinstance(one, FlexyError) else prepare(one.after) for one in seen]
        return after, [one if isinstance(one, FlexyError) else prepare(one.before) for one in seen]

    def pairs(left: list[Any], right: list[Any]) -> list[tuple[Any, Any]]:
        return list(zip(left, right, strict=True))

    clip = work.slot.get(work.model("clip"))
    after, before = (
        mapped(clip.images_a_call, clip.images, [(picture,) for picture in pictures])
        for pictures in prepared(clip.prepare)
    )
    alike = mapped(CHUNK, cosines, pairs(after, before))
    head = work.slot.get(work.model("aesthetic_v2"))
    marks = mapped(CHUNK, lambda vectors: head.marks(np.stack(vectors)), [(vector,) for vector in after])
    lpips = work.slot.get(work.model("lpips"))
    apart = mapped(lpips.images_a_call, lpips.distances, pairs(*prepared(lpips.prepare)))
    fits = [
        next((value for value in pair if isinstance(value, FlexyError)), None) or 5 * (pair[0] + 1 - float(pair[1]))
        for pair in zip(alike, apart, strict=True)
    ]
    record(work, work.mark("aesthetic_v2"), [("quality", *pair) for pair in zip(chunk, marks, strict=True)])
    mark = f"{work.mark('clip')}+{work.model('lpips').fingerprint}"
    record(work, mark, [("consistency", *pair) for pair in zip(chunk, fits, strict=True)])


def ask_a_judge(work: Scoring, tasks: Sequence[Task], candidates: Sequence[Candidate]) -> str | None:
    """Have the judge read the finished candidates that it has not answered for, one by one.

    What another judge said of them gives way: marks of two judges cannot be compared. Returns the judge's mark, None
    where none is configured.
    """
    from resources.judges import judge, questions

    asked = judge(work.settings, work.slot)
    if asked is None:
        return None
    with work.database.begin(reading=True) as connection:
        answered = edits.scored_by(connection, {task.batch for task in tasks}, JUDGED[0], asked.mark)
    for candidate in candidates:
        if candidate.until < candidate.path or candidate.id in answered:
            continue
        (one,) = _look(work, tasks, [candidate])
        values: list[Any] = [one] * len(JUDGED)
        if isinstance(one, Seen):
            stencil = one.canvas.stencil
            assert stencil is not None
            verdict = asked.ask(questions.inpainting(), [one.character, one.before, one.after, stencil])
            silent = FlexyError(verdict.reason or "the judge did not answer")
            values = [verdict.values[metric] if verdict.values else silent for metric in MEASURED]
        record(work, asked.mark, [(metric, candidate, value) for metric, value in zip(JUDGED, values, strict=True)])
    return asked.mark
