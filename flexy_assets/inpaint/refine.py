"""Takes tasks from the face swap to the selection: each step does what is missing, and commits as it goes."""

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
    """Return the swap of each task without an error, by task; `on_progress` is called for each new swap."""
    model = registry.find_face_swapper(work.settings)
    with work.database.begin(reading=True) as connection:
        swaps = labels.read_swaps(connection, tasks, model.fingerprint)
    for task in tasks:
        if task.error or task.id in swaps:
            continue
        swaps[task.id] = _swap_face(work, task, work.slot.get(model), model.fingerprint)
        with work.database.begin() as connection:
            labels.record_swap(connection, swaps[task.id])
        on_progress(1)
    return swaps


def _swap_face(work: Work, task: LabelTaskRow, swapper: Any, fingerprint: str) -> SwapRow:
    started = time.perf_counter()
    try:
        files = task.scene_mask_and_character
        scene, mask, character = (work.store.read(file.image_path, file.image_sha256) for file in files)
        fitted = masks.fit_mask(masks.mask_from_image(mask), *scene.size)
        swap = swap_face_at_mask(swapper, scene, fitted, character)
    except FlexyError as error:
        return SwapRow(task.id, task.digest, SKIPPED, fingerprint, str(error))
    path = sha256 = None
    if swap.image is not None:
        path = f"{INPAINT_FOLDER}/{task.batch}/swaps/{task.position:05d}_{task.digest[:8]}.png"
        sha256 = work.store.write(path, swap.image)
    at_edge = swap.face.at_edge if swap.face else None
    box = tuple(round(float(side), 1) for side in swap.face.box) if swap.face else None
    elapsed_ms = round(1000 * (time.perf_counter() - started))
    result = swap.error, swap.faces, at_edge, box, swap.before, swap.after, path, sha256, elapsed_ms
    return SwapRow(task.id, task.digest, SWAPPED if path else SKIPPED, fingerprint, *result)


def plan_tasks(work: Work, plan: InpaintPlan, tasks: Sequence[LabelTaskRow]) -> list[EditTaskRow]:
    """Store the swapped tasks as edit tasks of this plan, each with its swap as first candidate; return the rows."""
    fingerprint = registry.find_face_swapper(work.settings).fingerprint
    with work.database.begin(reading=True) as connection:
        swaps = labels.read_swaps(connection, tasks, fingerprint)
    rows, first_candidates = [], []
    for task in tasks:
        swap = swaps.get(task.id)
        if swap is None or swap.image_path is None or swap.image_sha256 is None:
            continue
        key = uuid5(plan.run_id, f"{task.id}/{task.digest}/{swap.image_sha256}")
        place = f"{plan.run_id.hex[:8]}_{task.batch}", task.position, task.name
        image, mask = (swap.image_path, swap.image_sha256), _editing_mask(work, plan, task)
        reference = task.character_path, task.character_sha256
        prompt = task.prompt or plan.prompt
        row = EditTaskRow(key, plan.run_id, *place, prompt, *image, task.id, *mask, *reference, task.digest)
        rows.append(row)
        first_candidates.append(_swap_candidate(row, swap))
    if rows:
        with work.database.begin() as connection:
            edits.save_comparison(connection, plan.run_id, plan.to_json(), rows)
            edits.add_candidates(connection, first_candidates)
    return rows


def _editing_mask(work: Work, plan: InpaintPlan, task: LabelTaskRow) -> tuple[str | None, str | None]:
    """Return path and SHA-256 of the mask for the editor: the task's own or the widened one."""
    if not plan.widen or task.mask_path is None:
        return task.mask_path, task.mask_sha256
    from PIL import Image

    try:
        mask = masks.widen_mask(masks.mask_from_image(work.store.read_as_is(task.mask_path)), plan.widen)
    except FlexyError:  # reported for this task when its canvas is read
        return task.mask_path, task.mask_sha256
    path = f"{INPAINT_FOLDER}/{task.batch}/masks/{task.position:05d}_{task.digest[:8]}_{plan.widen:g}.png"
    return path, work.store.write(path, Image.fromarray(mask))


def _swap_candidate(task: EditTaskRow, swap: SwapRow) -> dict[str, Any]:
    """Return the unrefined swap as a row of `edit_candidates`."""
    return {
        **{"id": candidate_id(task.id, SWAP_NAME, 0, SWAP_NAME, 0), "task": task.id, "parent": None, "moves": ()},
        **dict.fromkeys(("method", "name", "stage"), SWAP_NAME),
        **dict.fromkeys(("budget", "seed", "strength", "until", "path", "nfe"), 0),
        **{name: getattr(swap, name) for name in ("image_path", "image_sha256", "elapsed_ms")},
        "images_in_call": 1,
    }


def refine_tasks(
    work: Work, plan: InpaintPlan, tasks: Sequence[EditTaskRow], on_progress: Callable[[int], Any]
) -> None:
    """Search each task within the plan's budget, and score every candidate."""
    if tasks and plan.nfe:
        SearchRunner(work, plan, INPAINT_METHOD, tasks, INPAINT_FOLDER, metrics.score_by_models).run(on_progress)
    metrics.score_by_models(work, tasks, candidates_with_swap(work, tasks))


def candidates_with_swap(work: Work, tasks: Sequence[EditTaskRow]) -> list[CandidateRow]:
    """Return every candidate of these tasks, the unrefined ones first."""
    batches, ids = {task.batch for task in tasks}, {task.id for task in tasks}
    with work.database.begin(reading=True) as connection:
        methods = [edits.edit_candidates_of(connection, batches, method) for method in (SWAP_NAME, INPAINT_METHOD)]
    return [candidate for candidates in methods for candidate in candidates if candidate.task in ids]


def select_best(
    work: Work, plan: InpaintPlan, tasks: Sequence[EditTaskRow], judge: str | None
) -> dict[Any, CandidateRow]:
    """Store and return each task's winner, with its potential; without any potential a task has no winner.

    The potential is by the scores of `judge` (a fingerprint) if given, else by those of models. A task that has a
    winner keeps it until the judge has answered for all of its candidates: one that is away undoes nothing.
    """
    potential = plan.judged if judge else plan.potential
    with work.database.begin(reading=True) as connection:
        selected = edits.selections_of(connection, {task.batch for task in tasks})
    answered = metrics.judged_candidates(work, tasks, judge) if judge else None
    by_task: dict[Any, list[CandidateRow]] = {}
    for candidate in candidates_with_swap(work, tasks):
        if candidate.finished:
            by_task.setdefault(candidate.task, []).append(candidate)
    winners = {}
    for task, candidates in by_task.items():
        # Another judge's scores are not compared with this one's.
        scored = [each for each in candidates if answered is None or each.id in answered]
        values = {each.id: potential.value(each.scores) for each in scored}
        kept = next((each for each in candidates if each.id == selected.get(task)), None)
        order = rank_candidates(potential, [each.scores for each in scored])
        best = scored[order[0]] if order and values[scored[order[0]].id] is not None else None
        if kept and (best is None or len(scored) < len(candidates)):
            winners[task] = kept
            continue
        if best is None:
            continue
        fingerprint = f"{potential} ({judge or 'measured'})"
        outcome = ScoredImage(best.id, values[best.id])
        with work.database.begin() as connection:
            edits.select_candidate(connection, best)
            record_outcomes(connection, "potential", fingerprint, [outcome])
        winners[task] = best
    return winners
