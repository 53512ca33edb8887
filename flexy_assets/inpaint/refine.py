"""Carries label tasks from the swap to the choice: each step does what is not done yet, and commits as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid5

from flexy_assets.edits.search.runner import SearchRunner
from flexy_assets.edits.search.selectors import rank_candidates
from flexy_assets.inpaint import metrics
from flexy_assets.inpaint.face_swap import swap_face_at_mask
from flexy_assets.inpaint.plan import INPAINT_METHOD, SWAP_NAME, InpaintPlan
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits, labels
from flexy_assets.storage.edits import CandidateRow, EditTaskRow, candidate_id
from flexy_assets.storage.labels import SKIPPED, SWAPPED, LabelTaskRow, SwapRow
from flexy_assets.storage.scores import ScoredImage, record_outcomes
from resources import masks
from resources.errors import FlexyError
from resources.models import registry

INPAINT_FOLDER = "labels"


def swap_faces(work: Work, tasks: Sequence[LabelTaskRow], on_progress: Callable[[int], Any]) -> dict[Any, SwapRow]:
    """Return the swap of each task whose images are here, by task; `on_progress` is called for each new swap."""
    model = registry.find_face_swapper(work.settings)
    mark = model.fingerprint
    with work.database.begin(reading=True) as connection:
        known = labels.read_swaps(connection, tasks, mark)
    for task in tasks:
        if task.error or task.id in known:
            continue
        known[task.id] = _swap(work, task, work.slot.get(model), mark)
        with work.database.begin() as connection:
            labels.record_swap(connection, known[task.id])
        on_progress(1)
    return known


def _swap(work: Work, task: LabelTaskRow, swapper: Any, mark: str) -> SwapRow:
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
        found = swap_face_at_mask(swapper, scene, masks.fit_mask(masks.mask_from_image(mask), *scene.size), character)
    except FlexyError as error:
        return SwapRow(task.id, task.digest, SKIPPED, mark, str(error))
    path = sha256 = None
    if found.picture is not None:
        path = f"{INPAINT_FOLDER}/{task.batch}/swaps/{task.position:05d}_{task.digest[:8]}.png"
        sha256 = work.store.write(path, found.picture)
    return SwapRow(
        task.id,
        task.digest,
        SWAPPED if path else SKIPPED,
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


def plan_tasks(work: Work, plan: InpaintPlan, tasks: Sequence[LabelTaskRow]) -> list[EditTaskRow]:
    """The swapped tasks as rows of this plan, kept with the unrefined swap as each one's first candidate."""
    mark = registry.find_face_swapper(work.settings).fingerprint
    with work.database.begin(reading=True) as connection:
        found = labels.read_swaps(connection, tasks, mark)
    rows, firsts = [], []
    for task in tasks:
        swap = found.get(task.id)
        if swap is None or swap.image_path is None or swap.image_sha256 is None:
            continue
        mask_path, mask_sha256 = _mask(work, plan, task)
        row = EditTaskRow(
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
        firsts.append(_swap_candidate(row, swap))
    if rows:
        with work.database.begin() as connection:
            edits.save_comparison(connection, plan.run_id, plan.to_json(), rows)
            edits.add_candidates(connection, firsts)
    return rows


def _mask(work: Work, plan: InpaintPlan, task: LabelTaskRow) -> tuple[str | None, str | None]:
    """The mask that the editor works in, and its SHA-256: the task's own, or that widened."""
    if not plan.widen or task.mask_path is None:
        return task.mask_path, task.mask_sha256
    from PIL import Image

    try:
        mask = masks.widen_mask(masks.mask_from_image(work.store.read_as_is(task.mask_path)), plan.widen)
    except FlexyError:  # said where it is worked in, of this task alone
        return task.mask_path, task.mask_sha256
    path = f"{INPAINT_FOLDER}/{task.batch}/masks/{task.position:05d}_{task.digest[:8]}_{plan.widen:g}.png"
    return path, work.store.write(path, Image.fromarray(mask))


def _swap_candidate(task: EditTaskRow, swap: SwapRow) -> dict[str, Any]:
    """The unrefined swap as a row of `edit_candidates`."""
    return {
        "id": candidate_id(task.id, SWAP_NAME, 0, SWAP_NAME, 0),
        "task": task.id,
        "method": SWAP_NAME,
        "budget": 0,
        "name": SWAP_NAME,
        "stage": SWAP_NAME,
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


def refine_tasks(
    work: Work, plan: InpaintPlan, tasks: Sequence[EditTaskRow], on_progress: Callable[[int], Any]
) -> None:
    """Search each task within the plan's budget, and measure every candidate."""
    searching = SearchRunner(work, plan, INPAINT_METHOD, tasks, INPAINT_FOLDER, metrics.score_candidates)
    if tasks and plan.nfe:
        searching.run(on_progress)
    metrics.score_candidates(work, tasks, candidates_with_swap(work, tasks))


def candidates_with_swap(work: Work, tasks: Sequence[EditTaskRow]) -> list[CandidateRow]:
    """Every candidate of these tasks, the unrefined ones first."""
    batches = {task.batch for task in tasks}
    with work.database.begin(reading=True) as connection:
        found = [
            c for method in (SWAP_NAME, INPAINT_METHOD) for c in edits.edit_candidates_of(connection, batches, method)
        ]
    wanted = {task.id for task in tasks}
    return [candidate for candidate in found if candidate.task in wanted]


def select_best(
    work: Work, plan: InpaintPlan, tasks: Sequence[EditTaskRow], judge: str | None
) -> dict[Any, CandidateRow]:
    """Keep each task's best candidate and its potential; a task of which none has a potential has no winner.

    By the judge of this mark where there is one, else by what was measured.
    """
    potential = plan.judged if judge else plan.potential
    by_task: dict[Any, list[CandidateRow]] = {}
    for candidate in candidates_with_swap(work, tasks):
        if candidate.until == candidate.path:
            by_task.setdefault(candidate.task, []).append(candidate)
    found = {}
    for task, some in by_task.items():
        best = some[rank_candidates(potential, [candidate.scores for candidate in some])[0]]
        value = potential.of(best.scores)
        with work.database.begin() as connection:
            if value is None:
                edits.unselect_task(connection, task)
                continue
            edits.select_candidate(connection, best)
            mark = f"{potential} ({judge or 'measured'})"
            record_outcomes(connection, "potential", mark, [ScoredImage.of(best.id, value)])
        found[task] = best
    return found
