"""A trial: one image at settings of a person's choice, made once, scored, and no part of the sweep's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import dagster as dg
import polars as pl
import pytest

from flexy_assets.execution import dagster_instance, run_assets, run_job, step_failures
from flexy_assets.storage.quality import RunTally
from flexy_assets.storage.runs import add_images
from flexy_assets.storage.scores import SCORES_SCHEMA
from flexy_assets.sweep import analysis
from flexy_assets.sweep.analysis import drift
from flexy_assets.sweep.try_image import MAX_SEED, Trial, trial_sweep_id
from resources.database import Database
from resources.engines import ImageRequest
from resources.errors import BadInputError
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.models import registry
from resources.settings import Settings

ROOT = Path(__file__).parent.parent.parent
MINI = Settings.read({"FLEXY_MODELS": "mini"})
FULL = Settings.read({"FLEXY_MODELS": "full"})
TRIAL = Trial.of(MINI, "a red circle", seed=7, steps=2)


# Settings


def test_the_same_settings_are_the_same_image_and_any_other_setting_is_another() -> None:
    assert Trial.of(MINI, " a red circle ", "mini_sdxl", "", 2, 2, 7).image_id == TRIAL.image_id
    others = {"prompt": "a blue circle", "negative_prompt": "red", "steps": 3, "guidance": 2.5, "seed": 8, "width": 72}
    made = {replace(TRIAL, **{name: value}).image_id for name, value in others.items()} | {TRIAL.image_id}
    assert len(made) == len(others) + 1


def test_what_is_left_out_is_the_engines_own() -> None:
    schnell = Trial.of(FULL, "a fox", engine="flux_schnell")
    assert (schnell.steps, schnell.guidance, schnell.width, schnell.height) == (4, None, 512, 512)
    assert Trial.of(FULL, "a fox").guidance == registry.MODELS["realvis_xl"].guidance


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "x" * 2001}, "the prompt: over 2000 characters"),
        ({"prompt": "a\nb"}, "the prompt: control characters"),
        ({"prompt": "\ud800"}, "the prompt: control characters"),
        ({"negative_prompt": "a\0b"}, "the negative prompt: control characters"),
        ({"engine": "dall_e"}, "unknown engine 'dall_e'"),
        ({"engine": "flux_schnell", "guidance": 0.0}, "flux_schnell has no guidance"),
        ({"engine": "flux2_dev", "negative_prompt": "fog"}, "flux2_dev has no negative prompt"),
        ({"steps": 0}, "invalid steps '0'"),
        ({"steps": 1001}, "invalid steps '1001'"),
        ({"guidance": -1.0}, "invalid guidance '-1'"),
        ({"guidance": float("nan")}, "invalid guidance 'nan'"),
        ({"seed": -1}, "invalid seed -1"),
        ({"seed": MAX_SEED + 1}, "invalid seed 2147483648"),
        ({"width": 100}, "invalid image side 100"),
        ({"height": 0}, "invalid image side 0"),
        ({"height": 8200}, "invalid image side 8200"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trial_that_cannot_be_is_refused_in_one_line_that_names_the_setting(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInputError, match=words) as refused:
        Trial.of(FULL, **{"prompt": "a fox"} | settings)
    assert "\n" not in str(refused.value)


# Statistics


def test_trials_are_no_part_of_the_sweeps_statistics() -> None:
    columns = {name: [None, None] for name in SCORES_SCHEMA} | {"image_id": ["trial", "sweep"]}
    columns |= {"engine": ["mini_sdxl"] * 2, "run_id": [str(trial_sweep_id("mini_sdxl")), str(uuid4())]}
    scores = pl.DataFrame(columns, schema=SCORES_SCHEMA)
    assert analysis.measured_images(scores)["image_id"].to_list() == ["sweep"]


def test_trials_that_please_are_no_drift() -> None:
    def tally(run: UUID, mean: float, year: int) -> RunTally:
        return RunTally("mini_sdxl", run, datetime(year, 1, 1), 0, 50, 50 * mean, 50 * (mean**2 + 0.01), 0, 1)

    sweep, metric = tally(uuid4(), 0.3, 2025), METRICS["clip_score"]
    (found,) = drift.find_drifts([sweep, tally(uuid4(), 0.6, 2026)], metric)
    assert found.is_real
    assert drift.find_drifts([sweep, tally(trial_sweep_id("mini_sdxl"), 0.6, 2026)], metric) == []


# The job


class House:
    """A home with its definitions, database and Dagster instance."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        from flexy_assets.definitions import build_definitions

        defs = build_definitions(Settings.read())

        self.defs, self.instance = defs, instance
        self.database = Database(f"sqlite:///{home / 'flexy.sqlite'}")
        self.images = ImageStore(str(home / "images"))

    def run(self, **settings: Any) -> dg.ExecuteInProcessResult:
        return run_job(self.instance, self.defs, "try_image", {"ops": {"trial": {"config": settings}}})

    def rows(self) -> list[dict[str, Any]]:
        with self.database.begin(reading=True) as connection:
            return [dict(row) for row in connection.exec_driver_sql("SELECT * FROM bench_run_results").mappings()]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = tmp_path_factory.mktemp("trials")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("FLEXY_DATABASE_URL", "FLEXY_IMAGES"):
            environment.delenv(name, raising=False)
        for name, value in {
            "FLEXY_HOME": home,
            "FLEXY_DAGSTER_STORAGE": home / "dagster",
            "DAGSTER_HOME": ROOT,
        }.items():
            environment.setenv(name, str(value))
        environment.setenv("FLEXY_MODELS", "mini")
        with dagster_instance(Settings.read()) as instance:
            yield House(home, instance)


@pytest.fixture(scope="module")
def first(house: House) -> dg.ExecuteInProcessResult:
    """The run that made `TRIAL`."""
    return house.run(prompt="a red circle", seed=7, steps=2)


def test_a_trial_is_an_image_like_any_other_made_with_the_seed_that_was_asked_for(
    house: House, first: dg.ExecuteInProcessResult
) -> None:
    assert first.success, step_failures(first)
    (row,) = house.rows()
    assert UUID(row["id"]) == TRIAL.image_id
    assert {name: row[name] for name in TRIAL.to_json()} == TRIAL.to_json()
    assert all(row[metric] is not None for metric in METRICS)
    slot = (house.defs.resources or {})["work"].slot
    with slot:
        fields = {name: value for name, value in TRIAL.to_json().items() if name != "engine"}
        (same,) = slot.get(registry.find_engine("mini_sdxl", MINI)).generate([ImageRequest(**fields)])
    assert house.images.read(row["image_path"], row["image_sha256"]).tobytes() == same.tobytes()


def test_the_runs_events_show_the_picture_its_scores_and_the_batch_that_grew(
    house: House, first: dg.ExecuteInProcessResult
) -> None:
    shown = next(e.asset_observation_data.asset_observation for e in first.all_events if e.is_asset_observation)
    (row,) = house.rows()
    assert str(shown.metadata["image"].value).startswith("![")
    assert {m.name: shown.metadata[m.label].value for m in METRICS.values()} == {name: row[name] for name in METRICS}
    grown = {(e.asset_key.to_user_string(), e.partition) for e in first.get_asset_materialization_events()}
    names = ("generated_images", "clip_embeddings", *(f"{name}s" for name in METRICS))
    assert grown == {(name, "trials_mini_sdxl") for name in names}
    assert house.instance.get_dynamic_partitions("seed_batches") == ["trials_mini_sdxl"]


def test_what_was_made_before_is_not_made_again_whoever_made_it(house: House, first: dg.ExecuteInProcessResult) -> None:
    sweeps = {"id": uuid4(), "batch": "4b7193fd_0000", "image_path": "4b7193fd_0000/000000.png"}
    with house.database.begin() as connection:
        add_images(connection, [TRIAL.to_json() | {"seed": 8} | sweeps])
    there = house.rows()
    assert house.run(prompt="a red circle", seed=7, steps=2).success
    assert house.run(prompt="a red circle", seed=8, steps=2).success
    assert house.rows() == there


def test_a_lost_trial_is_made_again(house: House, first: dg.ExecuteInProcessResult) -> None:
    there = house.rows()
    file = Path(Settings.read().images, there[0]["image_path"])
    picture = file.read_bytes()
    file.unlink()
    assert house.run(prompt="a red circle", seed=7, steps=2).success
    assert (house.rows(), file.read_bytes()) == (there, picture)


def test_nothing_of_the_trials_run_is_still_to_be_made(house: House, first: dg.ExecuteInProcessResult) -> None:
    from flexy_assets.sweep.assets import generated_images

    there, batches = house.rows(), ("trials_mini_sdxl", "trials_mini_sdxl")
    result = run_assets(house.instance, house.defs, [generated_images], batches=batches)
    (event,) = result.asset_materializations_for_node("generated_images")
    assert event.metadata["images generated"].value == 0
    assert house.rows() == there


def test_a_form_that_cannot_be_fails_in_one_line_and_leaves_no_row(
    house: House, first: dg.ExecuteInProcessResult
) -> None:
    there = house.rows()
    assert step_failures(house.run(prompt="a red circle", steps=0)) == [
        "invalid steps '0': must be integers from 1 to 1000"
    ]
    assert house.rows() == there
