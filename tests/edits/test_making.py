"""Searches run by the mini editor: at their cost, in batches, and once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flexy_assets.edits import metrics, results, sources
from flexy_assets.edits.assets import EditConfig
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.edits.search.eacps import EacpsParameters
from flexy_assets.edits.search.runner import SearchRunner
from flexy_assets.edits.tasks import read_tasks
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from resources.database import Database
from resources.engines.instruct_pix2pix import InstructPix2PixEditor
from resources.images import ImageStore
from resources.mini.edits import write_edit_example
from resources.models.entry import LocalModel
from resources.models.slot import ModelSlot
from resources.settings import Settings
from tests.conftest import on_postgres, on_sqlite

pytestmark = pytest.mark.slow(seconds=60)

STEPS = 4
BUDGET = 2 * STEPS
TASKS = 3
SELECTING = ("pf", "pf_gain", "cons", "lpips", "layout")


@pytest.fixture
def work(database: Database, tmp_path: Path) -> Work:
    images = tmp_path / "images"
    images.mkdir()
    settings = Settings.read({"FLEXY_HOME": str(tmp_path), "FLEXY_MODELS": "mini"})
    return Work(database, ImageStore(str(images)), ModelSlot(), settings)


@pytest.fixture
def plan() -> Comparison:
    # Both stages, a preview that is carried on and one that is not, and a variant of its parent re-noised.
    parameters = EacpsParameters(
        scouts=2, local_share=0.5, preview=0.5, keep=0.5, m_global=1, k_local=2, t=0.8, strength=0.5
    )
    return Comparison(
        "mini_instruct", STEPS, 3.0, "a test", budgets=(2, 4), choose="potential", eacps=parameters, batch_size=2
    )


@pytest.fixture
def searches(work: Work, plan: Comparison, tmp_path: Path) -> list[SearchRunner]:
    """Both methods' searches of three tasks in two batches, nothing made yet."""
    file = write_edit_example(tmp_path / "set", TASKS, seed=7)
    found, _ = read_tasks(file)
    rows = sources.task_rows(plan, found, sources.copy_sources(work.store, file.parent, found))
    with work.database.begin() as connection:
        edits.save_comparison(connection, plan.run_id, plan.to_json(), rows)
    return [SearchRunner(work, plan, method, rows) for method in METHODS]


def frame(work: Work, plan: Comparison) -> pl.DataFrame:
    with work.database.begin(reading=True) as connection:
        return results.with_potential(edits.edit_scores_table(connection, [plan.run_id], metrics.EDIT_METRICS), plan)


@on_sqlite
def test_every_search_runs_its_budget_to_the_step_and_once(
    searches: list[SearchRunner], work: Work, plan: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[int] = Counter()
    loaded: list[str] = []
    run, load = InstructPix2PixEditor.denoise, LocalModel.load

    def denoise(editor: Any, begun: Any, until: int) -> Any:
        calls[len(begun)] += 1
        return run(editor, begun, until)

    def loads(model: LocalModel) -> Any:
        loaded.append(model.name)
        return load(model)

    monkeypatch.setattr(InstructPix2PixEditor, "denoise", denoise)
    monkeypatch.setattr(LocalModel, "load", loads)
    told: Counter[str] = Counter()
    for searching in searches:
        with work.slot:
            searching.run(lambda steps, method=searching.method: told.update({method: steps}))
    scores = frame(work, plan)
    whole = TASKS * sum(plan.nfe)
    assert told == {"eacps": whole, "ttflux": whole}, "by the editor's own counter"
    each = scores.group_by("task_id", "method", "budget").agg(pl.sum("nfe"))
    assert (each["nfe"] == each["budget"]).all() and len(each) == TASKS * 2 * 2
    # A round of all tasks and budgets loads each model at the most once.
    rounds = 1 + max(_rounds(plan, budget) for budget in plan.nfe)
    assert Counter(loaded)["mini_instruct"] <= rounds
    assert Counter(loaded)["mini_clip"] <= rounds and Counter(loaded)["mini_lpips"] <= rounds
    assert max(calls) > 1, "candidates are made together"
    stopped = scores.filter(pl.col("stop_step") < pl.col("num_steps"))
    assert len(stopped) and stopped["name"].is_in(scores["name"].implode()).all()
    variants = scores.filter(pl.col("strength") < 1)
    assert len(variants) and variants["parent_lpips"].count() == len(variants)
    # Local: a variant is nearer to its parent than to the source that both were made of.
    near, far = variants.select(pl.mean("parent_lpips", "lpips")).row(0)
    assert near < far
    # Run again, nothing is generated and nothing changes.
    files, steps_again = _files(work), list[int]()
    for searching in searches:
        searching.run(steps_again.append)
    assert steps_again == []
    assert frame(work, plan).equals(scores) and _files(work) == files


def _rounds(plan: Comparison, budget: int) -> int:
    """How many rounds a search of EACPS takes, whatever comes of it."""
    from flexy_assets.edits.search.protocol import SearchCandidate

    search, made, rounds = plan.search("eacps", budget, "any"), [], 0
    while asked := search.ask(made):
        made += [SearchCandidate(p.name, p.stop_step, p.nfe, dict.fromkeys(metrics.EDIT_METRICS, 1.0)) for p in asked]
        rounds += 1
    return rounds


def _files(work: Work) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(work.store.root).rglob("*.png")}


@on_sqlite
def test_an_interrupted_search_resumes(searches: list[SearchRunner], work: Work, plan: Comparison) -> None:
    """Stopped after every single call of the editor, also between a preview and its end."""
    stops = total = 0

    def told(steps: int) -> None:
        nonlocal total
        total += steps
        raise KeyboardInterrupt

    while True:
        try:
            searches[0].run(told)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 2 * TASKS
    assert total == TASKS * sum(plan.nfe), "no step was run twice"
    table = frame(work, plan)
    assert table.select("task_id", "method", "budget", "name", "stop_step").is_duplicated().sum() == 0


@on_sqlite
def test_a_missing_image_has_an_error_and_no_score(searches: list[SearchRunner], work: Work, plan: Comparison) -> None:
    ttflux = searches[1]
    ttflux.denoise(list(ttflux.requests([])), [], lambda _: None)
    lost = ttflux.candidates()[0]
    Path(work.store.root, lost.image_path or "").unlink()
    ttflux.run(lambda _: None)
    made = {c.id: c for c in ttflux.candidates()}
    assert {made[lost.id].scores[metric] for metric in SELECTING} == {None}
    others = [c for c in made.values() if c.id != lost.id]
    assert all(c.scores[metric] is not None for c in others for metric in SELECTING)
    assert lost.id not in {c.id for c in ttflux.winners(list(made.values()))}


@on_postgres
def test_winners_are_scored_by_independent_metrics(searches: list[SearchRunner], work: Work, plan: Comparison) -> None:
    for searching in searches:
        searching.run(lambda _: None)
        made = searching.candidates()
        chosen = list(searching.winners(made))
        assert len(chosen) == TASKS * len(plan.budgets)
        with work.database.begin() as connection:
            edits.record_selections(connection, chosen)
        metrics.score_independent(work, searching.tasks, chosen)
        metrics.score_ground_truth(work, searching.tasks, made)
    scores = frame(work, plan)
    winners = scores.filter("chosen")
    for metric in ("hps_v2_score", "aes_v2_score", "carried_out", "preserved", "truth"):
        assert winners[metric].null_count() == 0
    # Each is the best of its search by what it chose by.
    for method, metric in (("eacps", "potential"), ("ttflux", "pf")):
        finished = scores.filter((pl.col("method") == method) & (pl.col("stop_step") == pl.col("num_steps")))
        best = finished.group_by("task_id", "budget").agg(pl.max(metric))
        mine = winners.filter(method=method).select("task_id", "budget", metric)
        assert mine.sort("task_id", "budget").equals(best.sort("task_id", "budget"))
    compared = results.compare_winners(scores)
    pairs = {(row["budget"], row["rival_budget"]) for row in compared.to_dicts()}
    assert pairs == {(8, 8), (8, 16), (16, 16)}
    assert set(compared["role"]) == {"ground truth", "independent", "selecting"} and (compared["n"] == TASKS).all()
    with work.database.begin(reading=True) as connection:
        assert not edits.latents_of(connection, [c.id for s in searches for c in s.candidates()]), (
            "latents are let go of"
        )


@on_sqlite
def test_eacps_edits_are_better_at_equal_cost_by_the_ground_truth(work: Work, tmp_path: Path) -> None:
    """The small form of benchmarks.edits; with three steps tries differ more, so fewer edits show it."""
    plan = EditConfig(steps=3, budgets=[8]).plan(work.settings, "the small form")
    file = write_edit_example(tmp_path / "set", 12, seed=11)
    found, _ = read_tasks(file)
    rows = sources.task_rows(plan, found, sources.copy_sources(work.store, file.parent, found))
    with work.database.begin() as connection:
        edits.save_comparison(connection, plan.run_id, plan.to_json(), rows)
    for method in METHODS:
        searching = SearchRunner(work, plan, method, rows)
        searching.run(lambda _: None)
        made = searching.candidates()
        with work.database.begin() as connection:
            edits.record_selections(connection, searching.winners(made))
        metrics.score_ground_truth(work, rows, made)
    compared = {row["metric"]: row for row in results.compare_winners(frame(work, plan)).to_dicts()}
    assert compared["truth"]["n"] == 12
    assert compared["truth"]["gain"] > 0 and compared["truth"]["wins"] > compared["truth"]["losses"]
