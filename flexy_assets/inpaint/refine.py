"""Carries label tasks from the swap to the choice: each step does what is not done yet, and commits as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid5

from flexy_assets.edits.search.runner import Searching
from flexy_assets.edits.search.selectors import best_first
from flexy_assets.inpaint import metrics
from flexy_assets.inpaint.face_swap import swapped
from flexy_assets.inpaint.plan import METHOD, SWAP, Inpainting
from flexy_assets.scoring.missing_scores import Scoring
from flexy_assets.storage import edits, queries, swaps
from flexy_assets.storage.edits import Candidate, Task, candidate_id
from flexy_assets.storage.labels import Task as LabelTask
from flexy_assets.storage.queries import Scored
from flexy_assets.storage.swaps import LEFT, SWAPPED, Swap
from resources import masks
from resources.errors import FlexyError
from resources.models import registry

FOLDER = "labels"


def swap_faces(work: Scoring, tasks: Sequence[LabelTask], told: Callable[[int], Any]) -> dict[Any, Swap]:
    """What became of each task whose pictures are here, by task; `told` hears of each that was swapped now."""
    model = registry.face_swapper(work.settings)
    mark = model.fingerprint
    with work.database.begin(reading=True) as connection:
        known = swaps.swaps(connection, tasks, mark)
    for task in tasks:
        if task.error or task.id in known:
            continue
        known[task.id] = _swap(work, task, work.slot.get(model), mark)
        with work.database.begin() as connection:
            swaps.record(connection, known[task.id])
        told(1)
    return known


def _swap(work: Scoring, task: LabelTask, swapper: Any, mark: str) -> Swap:
    began = time.perf_counter()
    try:
        scene, mask, character = (
            work.store.read(path or "", sha256)
            for path, sha256 in (
                (task.image_path, task.image_sha256),
                (task.mask_path, task.mask_sha256),
                (task.character_path, task.character_sha256),
            )
        )
        found = swapped(swapper, scene, masks.fitting(masks.from_picture(mask), *scene.size), character)
    except FlexyError as error:
        return Swap(task.id, task.digest, LEFT, mark, str(error))
    path = sha256 = None
    if found.picture is not None:
        path = f"{FOLDER}/{task.batch}/swaps/{task.position:05d}_{task.digest[:8]}.png"
        sha256 = work.store.write(path, found.picture)
    return Swap(
        task.id,
        task.digest,
        SWAPPED if path else LEFT,
        mark,
        found.reason,
        found.faces,
        found.face.at_edge if found.face else None,
        tuple(round(float(side), 1) for side in found.face.box) if found.face else None,
        found.before,
        found.after,
        path,
        sha256,
        round(1000 * (time.perf_counter() - began)),
    )


def plan_tasks(work: Scoring, plan: Inpainting, tasks: Sequence[LabelTask]) -> list[Task]:
    """The swapped tasks as rows of this plan, kept with the unrefined swap as each one's first candidate."""
    mark = registry.face_swapper(work.settings).fingerprint
    with work.database.begin(reading=True) as connection:
        found = swaps.swaps(connection, tasks, mark)
    rows, firsts = [], []
    for task in tasks:
        swap = found.get(task.id)
        if swap is None or swap.image_path is None or swap.image_sha256 is None:
            continue
        mask_path, mask_sha256 = _mask(work, plan, task)
        row = Task(
            id=uuid5(plan.run_id, f"{task.id}/{task.digest}/{swap.image_sha256}"),
            run_id=plan.run_id,
            batch=f"{plan.run_id.hex[:8]}_{task.batch}",
            position=task.position,
            name=task.name,
            prompt=task.prompt or plan.prompt,
            image_path=swap.image_path,
            image_sha256=swap.image_sha256,
            label_task=task.id,
            mask_path=mask_path,
            mask_sha256=mask_sha256,
            reference_path=task.character_path,
            reference_sha256=task.character_sha256,
            label_digest=task.digest,
        )
        rows.append(row)
        firsts.append(_first(row, swap))
    if rows:
        with work.database.begin() as connection:
            edits.save_run(connection, plan.run_id, plan.to_json(), rows)
            edits.add_candidates(connection, firsts)
    return rows


def _mask(work: Scoring, plan: Inpainting, task: LabelTask) -> tuple[str | None, str | None]:
    """The mask that the editor works in, and its SHA-256: the task's own, or that widened."""
    if not plan.widen or task.mask_path is None:
        return task.mask_path, task.mask_sha256
    from PIL import Image

    try:
        mask = masks.widened(masks.from_picture(work.store.read_as_is(task.mask_path)), plan.widen)
    except FlexyError:  # said where it is worked in, of this task alone
        return task.mask_path, task.mask_sha256
    path = f"{FOLDER}/{task.batch}/masks/{task.position:05d}_{task.digest[:8]}_{plan.widen:g}.png"
    return path, work.store.write(path, Image.fromarray(mask))


def _first(task: Task, swap: Swap) -> dict[str, Any]:
    """The unrefined swap as a row of `edit_candidates`."""
    return {
        "id": candidate_id(task.id, SWAP, 0, SWAP, 0),
        "task": task.id,
        "method": SWAP,
        "budget": 0,
        "name": SWAP,
        "stage": SWAP,
        "seed": 0,
        "moves": (),
        "parent": None,
        "strength": 0.0,
        "until": 0,
        "path": 0,
        "nfe": 0,
        "image_path": swap.image_path,
        "image_sha256": swap.image_sha256,
        "elapsed_ms": swap.elapsed_ms,
        "images_in_call": 1,
    }


def refine(work: Scoring, plan: Inpainting, tasks: Sequence[Task], told: Callable[[int], Any]) -> None:
    """Search each task within the plan's budget, and measure every candidate."""
    searching = Searching(work, plan, METHOD, tasks, FOLDER, metrics.measure)
    if tasks and plan.nfe:
        searching.run(told)
    metrics.measure(work, tasks, candidates(work, tasks))


def candidates(work: Scoring, tasks: Sequence[Task]) -> list[Candidate]:
    """Every candidate of these tasks, the unrefined ones first."""
    batches = {task.batch for task in tasks}
    with work.database.begin(reading=True) as connection:
        found = [c for method in (SWAP, METHOD) for c in edits.candidates(connection, batches, method)]
    wanted = {task.id for task in tasks}
    return [candidate for candidate in found if candidate.task in wanted]


def choose(work: Scoring, plan: Inpainting, tasks: Sequence[Task], judge: str | None) -> dict[Any, Candidate]:
    """Keep each task's best candidate and its potential; a task of which none has a potential has no winner.

    By the judge of this mark where there is one, else by what was measured.
    """
    potential = plan.judged if judge else plan.potential
    by_task: dict[Any, list[Candidate]] = {}
    for candidate in candidates(work, tasks):
        if candidate.until == candidate.path:
            by_task.setdefault(candidate.task, []).append(candidate)
    found = {}
    for task, some in by_task.items():
        best = some[best_first(potential, [candidate.scores for candidate in some])[0]]
        value = potential.of(best.scores)
        with work.database.begin() as connection:
            if value is None:
                edits.unselect(connection, task)
                continue
            edits.select_one(connection, best)
            mark = f"{potential} ({judge or 'measured'})"
            queries.record_outcomes(connection, "potential", mark, [Scored.of(best.id, value)])
        found[task] = best
    return found
