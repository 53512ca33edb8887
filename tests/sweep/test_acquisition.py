"""The images that extend a sweep lie where the best settings may be, and are the same every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import polars as pl
import pytest

from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import add_images, save_sweep
from flexy_assets.storage.scores import SCORES_SCHEMA
from flexy_assets.sweep.acquisition import PairKernel, candidate_settings, extend_sweep, pair_covariance
from flexy_assets.sweep.assets import SweepConfig, plan_images
from flexy_assets.sweep.plan import SettingRange, Sweep
from resources.database import Database
from resources.errors import BadInputError
from resources.settings import Settings

PROMPTS = tuple(f"prompt {number}" for number in range(12))
SWEEP = Sweep("mini_sdxl", PROMPTS, SettingRange(4, 60), SettingRange(0.5, 12), sampling="paired", seed=3)
BEST_STEPS, BEST_GUIDANCE = 20, 3.0


def scored(sweep: Sweep, images: int, noise: float = 0.3) -> pl.DataFrame:
    """The sweep's images with a score that is best at `BEST_STEPS` and `BEST_GUIDANCE`; most of it is the pair's."""
    rows = sweep.rows(0, images)
    rng = np.random.default_rng(0)
    level = {pair: rng.normal(0, 3) for pair in rows.select("prompt", "seed").unique(maintain_order=True).rows()}
    guidance = rows["guidance"].fill_null(BEST_GUIDANCE).to_numpy()
    surface = (
        -(np.log2(rows["steps"].to_numpy() / BEST_STEPS) ** 2) - np.log2(np.maximum(guidance, 1) / BEST_GUIDANCE) ** 2
    )
    levels = np.array([level[pair] for pair in rows.select("prompt", "seed").rows()])
    score = surface + levels + rng.normal(0, noise, images)
    absent = [pl.lit(None).alias(name) for name in SCORES_SCHEMA if name not in rows.columns]
    table = rows.with_columns(absent).with_columns(clip_score=pl.Series(score))
    return table.select(list(SCORES_SCHEMA)).cast(pl.Schema(SCORES_SCHEMA))


def complaint(sweep: Sweep, scores: pl.DataFrame, images: int = 8, target: int = 80) -> str:
    with pytest.raises(BadInputError) as caught:
        extend_sweep(sweep, target, scores, images)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("sampling", ["paired", "uniform"])
def test_chosen_images_crowd_around_the_best_and_some_explore(sampling: str) -> None:
    sweep = replace(SWEEP, sampling=sampling)
    extended = extend_sweep(sweep, 120, scored(sweep, 120), 40)
    rows = extended.rows(120, 160)

    def share_near(table: pl.DataFrame) -> float:
        near = pl.col("steps").is_between(12, 32) & pl.col("guidance").is_between(1.7, 5.5)
        return table.filter(near).height / table.height

    # Images that are compared with them, to know what is theirs and what the seed's, lie elsewhere.
    assert share_near(rows) > 2 * share_near(sweep.rows(0, 1000))
    assert rows.select("steps", "guidance").n_unique() > 10
    pairs = rows.group_by("prompt", "seed").agg(pl.struct("steps", "guidance").n_unique(), pl.len().alias("images"))
    assert pairs.height == 10 and set(pairs["steps"]) == set(pairs["images"]) == {4}


def test_the_same_scores_choose_the_same_images_in_whatever_order_they_come() -> None:
    scores = scored(SWEEP, 80)
    one = extend_sweep(SWEEP, 80, scores, 20)
    assert extend_sweep(SWEEP, 80, scores.sample(fraction=1, shuffle=True, seed=1), 20) == one
    # Kept with the plan, they need no scores again.
    assert Sweep.from_json(json.loads(json.dumps(one.to_json()))).rows(80, 100).equals(one.rows(80, 100))
    assert one.rows(0, 80).equals(SWEEP.rows(0, 80))


def test_a_second_extension_follows_the_first() -> None:
    first = extend_sweep(SWEEP, 80, scored(SWEEP, 80), 10)
    second = extend_sweep(first, 90, scored(first, 90), 10)
    assert [(each.start, each.stop) for each in second.extensions] == [(80, 90), (90, 100)]
    assert second.rows(0, 90).equals(first.rows(0, 90))
    assert second.rows(0, 100)["image_id"].n_unique() == 100


@pytest.mark.parametrize(
    ("steps", "guidance", "cells"),
    [
        ("4,8,16", "1.5,3", {(4, 1.5), (4, 3.0), (8, 1.5), (8, 3.0), (16, 1.5), (16, 3.0)}),
        ("4:12:4", None, {(4, None), (8, None), (12, None)}),
        ("8", "0.5:1.5:0.5", {(8, 1.0), (8, 1.5)}),
    ],
)
def test_only_settings_of_the_sweep_are_chosen(
    steps: str, guidance: str | None, cells: set[tuple[int, float | None]]
) -> None:
    ranges = {"guidance": SettingRange.parse(guidance, "guidance") if guidance else None}
    sweep = replace(SWEEP, steps=SettingRange.parse(steps, "steps"), **ranges)
    assert set(candidate_settings(sweep)) == cells
    assert set(extend_sweep(sweep, 40, scored(sweep, 40), 12).extensions[0].settings) <= cells


def test_wide_ranges_are_thinned_to_their_ends_and_even_in_their_logarithm() -> None:
    cells = candidate_settings(SWEEP)
    steps, guidance = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    assert (steps[0], steps[-1], guidance[0], guidance[-1]) == (4, 60, 1.0, 12.0)
    assert len(steps) <= 20 and len(guidance) <= 14


def test_too_little_to_choose_by_is_one_line() -> None:
    name = SWEEP.run_id.hex[:8]
    line = complaint(SWEEP, scored(SWEEP, 12))
    assert line == f"cannot extend sweep {name}: 12 of its images are scored, 20 are needed: flexy sweep run {name}" + (
        ", or plan more"
    )
    fixed = replace(SWEEP, steps=SettingRange(8, 8), guidance=SettingRange(3, 3))
    assert "it has one setting alone" in complaint(fixed, scored(fixed, 40))
    assert "invalid images 0: must be from 1 to 10,000" in complaint(SWEEP, scored(SWEEP, 40), images=0)


@pytest.mark.parametrize("choice", [(2.0, 0.4, 3.0), (2.0, 1.0, 3.0), (0.0, 1.0, 0.5)])
def test_images_are_whitened_for_their_prompt_and_their_seed(choice: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    settings, pairs = rng.random((30, 2)), np.sort(np.arange(30) % 7)
    prompts = pairs // 3
    columns = np.column_stack([rng.standard_normal((30, 3)), np.ones(30)])
    whitened, half_log = PairKernel(settings, pairs, prompts).whiten(columns, *choice)
    of_pairs = (pairs[:, None] == pairs) * pair_covariance(settings, settings, *choice[:2])
    covariance = np.eye(30) + of_pairs + choice[2] * (prompts[:, None] == prompts)
    assert whitened.T @ whitened == pytest.approx(columns.T @ np.linalg.solve(covariance, columns))
    assert half_log == pytest.approx(np.linalg.slogdet(covariance)[1] / 2)


# In the database


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'flexy.sqlite'}")
    migrate(database)
    return database


def add_scored(database: Database, sweep: Sweep, start: int, stop: int) -> None:
    """Add the sweep's images with a score."""
    scores = dict(scored(sweep, stop).select("image_id", "clip_score").rows())
    rows = [
        {name: value for name, value in row.items() if name not in ("image_id", "run_id", "index")}
        | {"id": UUID(row["image_id"]), "run_id": UUID(row["run_id"]), "clip_score": scores[row["image_id"]]}
        for row in sweep.rows(start, stop).to_dicts()
    ]
    with database.begin() as connection:
        add_images(connection, rows)


def save(database: Database, sweep: Sweep, target: int) -> None:
    with database.begin() as connection:
        save_sweep(connection, sweep.run_id, sweep.engine, target, sweep.to_json())


def test_an_extension_that_was_interrupted_is_the_same_and_a_larger_sweep_keeps_it(database: Database) -> None:
    settings = Settings.read({"FLEXY_MODELS": "mini"})
    config = SweepConfig(engine="mini_sdxl", images=40, steps="4:40", seed=1, sampling="paired")
    sweep, target = plan_images(database, config, settings)
    save(database, sweep, target)
    more = SweepConfig(extend=str(sweep.run_id)[:8], images=12)
    with pytest.raises(BadInputError, match="0 of its images are scored, 20 are needed"):
        plan_images(database, more, settings)
    add_scored(database, sweep, 0, 40)
    extended, target = plan_images(database, more, settings)
    assert target == 52 and extended.extensions[0].start == 40
    save(database, extended, target)

    # Some of its images are made; then the command is killed and given again.
    add_scored(database, extended, 40, 45)
    assert plan_images(database, more, settings) == (extended, 52)
    assert plan_images(database, config, settings) == (extended, 52)
    larger, target = plan_images(database, config.model_copy(update={"images": 60}), settings)
    assert target == 60 and larger.rows(0, 52).equals(extended.rows(0, 52))

    add_scored(database, extended, 45, 52)
    again, target = plan_images(database, more, settings)
    assert target == 64 and again.extensions[0] == extended.extensions[0] and again.extensions[1].start == 52


def test_a_sweep_that_is_not_there_is_not_extended(database: Database) -> None:
    settings = Settings.read({"FLEXY_MODELS": "mini"})
    with pytest.raises(BadInputError, match="unknown sweep 'ab': does not exist"):
        plan_images(database, SweepConfig(extend="ab"), settings)
