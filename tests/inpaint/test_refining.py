"""Faces of the drawn world put right by the mini models: swapped, refined, measured, chosen, and once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flexy_assets.inpaint import importing, measuring, refining
from flexy_assets.inpaint.importing import Importing
from flexy_assets.inpaint.plan import SWAP, Inpainting
from flexy_assets.storage import edits, labels
from flexy_assets.storage.edits import Candidate
from flexy_assets.storage.labels import Task
from flexy_assets.storage.swaps import Swap
from flexy_assets.sweep.scoring import Scoring
from resources import masks
from resources.database import Database
from resources.images import ImageStore
from resources.mini.faces import write_example
from resources.models.slot import ModelSlot
from resources.settings import Settings

PLAN = Inpainting("mini_instruct", 2, 2.0, budget=2)
TASKS = 6


@pytest.fixture
def work(database: Database, tmp_path: Path) -> Scoring:
    images = tmp_path / "images"
    images.mkdir()
    settings = Settings.read({"FLEXY_HOME": str(tmp_path), "FLEXY_MODELS": "mini"})
    return Scoring(database, ImageStore(str(images)), ModelSlot(), settings)


@pytest.fixture
def tasks(work: Scoring, tmp_path: Path) -> list[Task]:
    source = importing.of_export(write_example(tmp_path / "example", TASKS, seed=1))
    importer = Importing(work.database, work.store, work.settings, source)
    importer.fetch(importer.reserve(50), lambda _: None)
    return stored(work)


def stored(work: Scoring) -> list[Task]:
    with work.database.begin(reading=True) as connection:
        return labels.tasks(connection)


def run(
    work: Scoring, tasks: Sequence[Task], plan: Inpainting = PLAN
) -> tuple[dict[str, Swap], list[Candidate], dict[str, Candidate], int]:
    """What became of each task by name, every candidate, the winners, and how much was done now."""
    done: list[int] = []
    swaps = refining.swap_faces(work, tasks, done.append)
    rows = refining.plan_tasks(work, plan, tasks)
    refining.refine(work, plan, rows, done.append)
    chosen = refining.choose(work, plan, rows, None)
    names = {task.id: task.name for task in tasks}
    winners = {row.name: chosen[row.id] for row in rows if row.id in chosen}
    return {names[task]: swap for task, swap in swaps.items()}, refining.candidates(work, rows), winners, sum(done)


def test_every_task_ends_chosen_or_with_a_reason_and_nothing_is_done_twice(work: Scoring, tasks: list[Task]) -> None:
    swaps, made, winners, steps = run(work, tasks)
    assert len(swaps) == TASKS
    assert steps == TASKS + len(winners) * PLAN.nfe[0]
    left = {name: swap.reason for name, swap in swaps.items() if swap.image_path is None}
    assert winners.keys() | left.keys() == {task.name for task in tasks} and not winners.keys() & left.keys()
    assert left and all(reason and reason.startswith("no face in the scene") for reason in left.values())
    risen = [swap.identity_after > swap.identity_before for swap in swaps.values() if swap.identity_after is not None]
    assert len(risen) == len(winners) and all(risen)
    # A whole denoise of a task is one candidate, the unrefined swap another.
    assert len(made) == len(winners) * (1 + PLAN.budget)
    with work.database.begin(reading=True) as connection:
        kept = labels.chosen(connection)
    assert {each.task.name: each.candidate for each in kept} == {name: c.id for name, c in winners.items()}
    for each in kept:
        assert each.scores["potential"] == pytest.approx(PLAN.potential.of(each.scores))
    again = run(work, tasks)
    assert again[3] == 0 and again[1] == made and again[2].keys() == winners.keys()


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("widen", [0.0, 0.25])
def test_outside_of_the_mask_no_pixel_changes(work: Scoring, tasks: list[Task], widen: float) -> None:
    plan = replace(PLAN, widen=widen, budget=1)
    swaps, made, _, _ = run(work, tasks, plan)
    scenes = {swap.image_path: task for task in tasks if (swap := swaps[task.name])}
    with work.database.begin(reading=True) as connection:
        rows = {row.id: row for row in edits.tasks(connection, {_batch(plan, task) for task in tasks})}
    assert made
    for candidate in made:
        task = scenes[rows[candidate.task].image_path]
        before = np.asarray(work.store.read(task.image_path or "", task.image_sha256))
        after = np.asarray(work.store.read(candidate.image_path or "", candidate.image_sha256))
        mask = masks.from_picture(work.store.read(task.mask_path or "", task.mask_sha256))
        assert not (before != after)[~masks.widened(mask, widen)].any()
        assert (before != after)[mask].any()
        # Only an editor that is allowed to changes what lies around the mask, and never the swapper.
        assert (before != after)[~mask].any() == (widen > 0 and candidate.stage != SWAP)


def _batch(plan: Inpainting, task: Task) -> str:
    return f"{plan.run_id.hex[:8]}_{task.batch}"


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
def test_a_task_that_changed_is_done_anew_and_what_was_made_stays(work: Scoring, tasks: list[Task]) -> None:
    first = tasks[:1]
    _, made, _, _ = run(work, first)
    other = replace(first[0], digest="0" * 64, character_path=tasks[1].character_path)
    other = replace(other, character_sha256=tasks[1].character_sha256)
    with work.database.begin() as connection:
        labels.save(connection, other)
    _, again, _, _ = run(work, [other])
    assert {c.task for c in again}.isdisjoint({c.task for c in made})
    with work.database.begin(reading=True) as connection:
        assert {c.id for c in edits.candidates(connection, {_batch(PLAN, other)}, SWAP)} > {
            c.id for c in made if c.stage == SWAP
        }


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
def test_a_face_that_was_lost_in_refining_is_not_chosen(work: Scoring, tasks: list[Task]) -> None:
    # An editor of shapes makes no faces.
    _, made, winners, _ = run(work, tasks[:2])
    lost = [c for c in made if c.stage != SWAP and c.scores["identity"] is None]
    assert lost and {winner.stage for winner in winners.values()} == {SWAP}
    assert all(c.scores[metric] is not None for c in lost for metric in measuring.MEASURED[1:])
