"""Faces of the drawn world, inpainted by the mini models: swapped, refined, scored and selected, and once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from flexy_assets.inpaint import import_tasks, metrics, refine
from flexy_assets.inpaint.import_tasks import TaskImporter
from flexy_assets.inpaint.plan import INPAINT_METHOD, SWAP_NAME, InpaintPlan
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits, labels
from flexy_assets.storage.edits import CandidateRow
from flexy_assets.storage.labels import LabelTaskRow, SwapRow
from flexy_assets.storage.tables import edit_selections, image_scores
from resources import masks
from resources.database import Database
from resources.images import ImageStore
from resources.mini.faces import write_face_example
from resources.models.slot import ModelSlot
from resources.settings import Settings
from tests.conftest import on_sqlite
from tests.support.servers import FaceJudgeServer, JudgeReply, running

pytestmark = pytest.mark.slow(seconds=30)

PLAN = InpaintPlan("mini_instruct", 2, 2.0, budget=2)
TASKS = 6


@pytest.fixture
def work(database: Database, tmp_path: Path) -> Work:
    images = tmp_path / "images"
    images.mkdir()
    settings = Settings.read({"FLEXY_HOME": str(tmp_path), "FLEXY_MODELS": "mini"})
    return Work(database, ImageStore(str(images)), ModelSlot(), settings)


@pytest.fixture
def tasks(work: Work, tmp_path: Path) -> list[LabelTaskRow]:
    source = import_tasks.source_from_export(write_face_example(tmp_path / "example", TASKS, seed=1))
    importer = TaskImporter(work.database, work.store, work.settings, source)
    importer.fetch(importer.reserve(50), lambda _: None)
    return stored(work)


def stored(work: Work) -> list[LabelTaskRow]:
    with work.database.begin(reading=True) as connection:
        return labels.label_tasks_of(connection)


def run(
    work: Work, tasks: Sequence[LabelTaskRow], plan: InpaintPlan = PLAN
) -> tuple[dict[str, SwapRow], list[CandidateRow], dict[str, CandidateRow], int]:
    """What became of each task by name, every candidate, the winners, and how much was done now."""
    done: list[int] = []
    swaps = refine.swap_faces(work, tasks, done.append)
    rows = refine.plan_tasks(work, plan, tasks)
    refine.refine_tasks(work, plan, rows, done.append)
    chosen = refine.select_best(work, plan, rows, None)
    names = {task.id: task.name for task in tasks}
    winners = {row.name: chosen[row.id] for row in rows if row.id in chosen}
    return (
        {names[task]: swap for task, swap in swaps.items()},
        refine.candidates_with_swap(work, rows),
        winners,
        sum(done),
    )


@on_sqlite
def test_every_task_has_a_winner_or_an_error_and_nothing_is_done_twice(work: Work, tasks: list[LabelTaskRow]) -> None:
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
        kept = labels.selected_images(connection)
    assert {each.task.name: each.candidate for each in kept} == {name: c.id for name, c in winners.items()}
    for each in kept:
        assert each.scores["potential"] == pytest.approx(PLAN.potential.value(each.scores))
    again = run(work, tasks)
    assert again[3] == 0 and again[1] == made and again[2].keys() == winners.keys()


@on_sqlite
@pytest.mark.parametrize("widen", [0.0, 0.25])
def test_outside_of_the_mask_no_pixel_changes(work: Work, tasks: list[LabelTaskRow], widen: float) -> None:
    plan = replace(PLAN, widen=widen, budget=1)
    swaps, made, _, _ = run(work, tasks, plan)
    scenes = {swap.image_path: task for task in tasks if (swap := swaps[task.name])}
    with work.database.begin(reading=True) as connection:
        rows = {row.id: row for row in edits.edit_tasks_of(connection, {_batch(plan, task) for task in tasks})}
    assert made
    for candidate in made:
        task = scenes[rows[candidate.task].image_path]
        before = np.asarray(work.store.read(task.image_path or "", task.image_sha256))
        after = np.asarray(work.store.read(candidate.image_path or "", candidate.image_sha256))
        mask = masks.mask_from_image(work.store.read(task.mask_path or "", task.mask_sha256))
        assert not (before != after)[~masks.widen_mask(mask, widen)].any()
        assert (before != after)[mask].any()
        # Only an editor that is allowed to changes what lies around the mask, and never the swapper.
        assert (before != after)[~mask].any() == (widen > 0 and candidate.stage != SWAP_NAME)


def _batch(plan: InpaintPlan, task: LabelTaskRow) -> str:
    return f"{plan.run_id.hex[:8]}_{task.batch}"


@on_sqlite
def test_a_changed_task_is_inpainted_again_and_old_candidates_stay(work: Work, tasks: list[LabelTaskRow]) -> None:
    first = tasks[:1]
    _, made, _, _ = run(work, first)
    other = replace(first[0], digest="0" * 64, character_path=tasks[1].character_path)
    other = replace(other, character_sha256=tasks[1].character_sha256)
    with work.database.begin() as connection:
        labels.save_label_task(connection, other)
    _, again, _, _ = run(work, [other])
    assert {c.task for c in again}.isdisjoint({c.task for c in made})
    with work.database.begin(reading=True) as connection:
        assert {c.id for c in edits.edit_candidates_of(connection, {_batch(PLAN, other)}, SWAP_NAME)} > {
            c.id for c in made if c.stage == SWAP_NAME
        }


@on_sqlite
def test_a_refinement_without_a_face_is_not_selected(work: Work, tasks: list[LabelTaskRow]) -> None:
    # An editor of shapes makes no faces.
    _, made, winners, _ = run(work, tasks[:2])
    lost = [c for c in made if c.stage != SWAP_NAME and c.scores["identity"] is None]
    assert lost and {winner.stage for winner in winners.values()} == {SWAP_NAME}
    assert all(c.scores[metric] is not None for c in lost for metric in metrics.MODEL_METRICS[1:])


@on_sqlite
def test_a_task_that_is_refined_alone_leaves_others_of_its_batch_as_they_are(
    work: Work, tasks: list[LabelTaskRow]
) -> None:
    refine.swap_faces(work, tasks[:2], lambda _: None)
    rows = refine.plan_tasks(work, PLAN, tasks[:2])
    (_, other) = refine.candidates_with_swap(work, rows)
    # As a run leaves it that was killed before it had measured.
    made = replace(other, id=uuid4(), method=INPAINT_METHOD, budget=PLAN.nfe[0], name="g0", stage="global")
    with work.database.begin() as connection:
        columns = {"noise_moves": "moves", "stop_step": "until", "num_steps": "path"}
        row = {columns.get(name, name): value for name, value in asdict(made).items() if name != "scores"}
        edits.add_candidates(connection, [row])
    refine.refine_tasks(work, PLAN, rows[:1], lambda _: None)
    found = {candidate.id: candidate for candidate in refine.candidates_with_swap(work, rows)}
    assert found[made.id].scores == found[other.id].scores == {}
    assert sum(candidate.task == rows[0].id for candidate in found.values()) == 1 + PLAN.budget


@on_sqlite
def test_each_judge_fills_its_columns_under_its_name_and_one_that_is_away_undoes_nothing(
    work: Work, tasks: list[LabelTaskRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = InpaintPlan(SWAP_NAME, steps=1, guidance=1.0, budget=0)
    refine.swap_faces(work, tasks, lambda _: None)
    rows = refine.plan_tasks(work, plan, tasks)
    refine.refine_tasks(work, plan, rows, lambda _: None)
    made = refine.candidates_with_swap(work, rows)

    def judged(judge: str, judge_server: FaceJudgeServer, **options: str) -> dict[UUID, dict[str, tuple[float, str]]]:
        """What the table has of each candidate once this judge was asked: value and who gave it, by metric."""
        settings = work.settings.model_copy(update={"judge": judge, "judge_url": judge_server.url} | options)
        mark = metrics.judge_candidates(replace(work, settings=settings), rows, refine.candidates_with_swap(work, rows))
        refine.select_best(work, plan, rows, mark)
        found: dict[UUID, dict[str, tuple[float, str]]] = {}
        with work.database.begin(reading=True) as connection:
            for row in connection.execute(sa.select(image_scores).order_by(image_scores.c.metric)):
                found.setdefault(row.image_id, {})[row.metric] = row.value, row.scorer
        return found

    with running(FaceJudgeServer()) as gemini, running(FaceJudgeServer(seed=1)) as moondream:
        first = judged("gemini", gemini)
        assert gemini.calls == 4 * len(made)
        for candidate, answers in zip(made, gemini.answers.values(), strict=True):
            of = first[candidate.id]
            for metric in metrics.MODEL_METRICS:
                mean = pytest.approx(fmean(answer[metric] for answer in answers))
                assert of[f"judge_{metric}"] == (mean, "gemini/gemini-3.5-flash")
            measured = [of[metric][1].split("@")[0] for metric in metrics.MODEL_METRICS]
            assert measured == ["mini_buffalo_l", "mini_aesthetic_v2", "mini_clip"]
            assert of["potential"][1].endswith("2·judge_identity (gemini/gemini-3.5-flash)")
        second = judged("moondream", moondream)
        assert moondream.calls == gemini.calls
        for candidate, answers in zip(made, moondream.answers.values(), strict=True):
            mean = pytest.approx(fmean(answer["identity"] for answer in answers))
            assert second[candidate.id]["judge_identity"] == (mean, "moondream@127.0.0.1")
            assert second[candidate.id]["potential"][1].endswith("(moondream@127.0.0.1)")
        assert judged("gemini", gemini) == first and gemini.calls == moondream.calls, "it remembers"
        monkeypatch.setattr("time.sleep", lambda _: None)  # between two attempts
        before = selections(work)
        assert len(before) == len(made)
        for reply in (
            JudgeReply.json({"error": "forbidden"}, 403),
            JudgeReply.json({"error": "out of order"}, 500),
            JudgeReply("A fine face."),
        ):
            monkeypatch.setattr(gemini, "reply", lambda _, reply=reply: reply)
            after = judged("gemini", gemini, judge_model=f"gemini-that-answers-{reply.status}")
            assert after == first, "no value was replaced by a failure"
            assert selections(work) == before


def selections(work: Work) -> list[Any]:
    with work.database.begin(reading=True) as connection:
        return [tuple(row) for row in connection.execute(sa.select(edit_selections).order_by(edit_selections.c.task))]
