"""A sweep that is planned in the UI is made and scored without another click."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from flexy_assets import names
from flexy_assets.definitions import build_definitions
from flexy_assets.execution import batches_in_progress, run_assets, run_job
from flexy_assets.scoring.work import Work
from flexy_assets.storage.scores import read_scores
from flexy_assets.sweep import assets
from resources.metrics.sweep import METRICS
from resources.settings import Settings
from sensors.fresh_results import fresh_results
from sensors.planned_sweeps import planned_sweeps

pytestmark = pytest.mark.slow(seconds=10)

CONFIG = {"images": 3, "steps": "1:2", "prompts": ["a red disc"]}


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    """What the sensor answers to what has happened since the cursor."""
    definitions = build_definitions(Settings.read())
    context = dg.build_sensor_context(instance, cursor, definitions=definitions)
    return planned_sweeps.evaluate_tick(context)


def test_a_planned_sweep_is_made_and_scored_once(home: Path) -> None:
    definitions = build_definitions(Settings.read())
    with dg.DagsterInstance.ephemeral() as instance:
        assert not tick(instance).run_requests
        assert run_assets(instance, definitions, [assets.sweep_plan], config={"sweep_plan": CONFIG}).success
        (request,) = tick(instance).run_requests or ()
        for images_to_make in (3, 0):
            done = run_job(instance, definitions, names.SWEEP_JOB, request.run_config)
            assert done.success
            made = done.asset_materializations_for_node("make_sweep")
            counts = [each.metadata["images generated"].value for each in made if "images generated" in each.metadata]
            assert sum(counts) == images_to_make
        work = Work.from_settings(Settings.read())
        with work.database.begin(reading=True) as connection:
            rows = read_scores(connection, work.settings)
        assert rows.height == 3 and rows.select(*METRICS).null_count().sum_horizontal().item() == 0
        run = instance.get_run_by_id(done.run_id)
        assert run and (run.tags[names.SWEEP_TAG], run.tags[names.ENGINE_TAG]) == (rows["run_id"][0][:8], "mini_sdxl")
        assert names.SWEEP_JOB in {job.name for job in fresh_results._monitored_jobs}


def test_what_a_command_plans_is_left_to_the_command(home: Path) -> None:
    definitions = build_definitions(Settings.read())
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.Definitions(assets=definitions.assets, resources=definitions.resources)
        job.resolve_implicit_global_asset_job_def().execute_in_process(
            {"ops": {"sweep_plan": {"config": CONFIG}}},
            instance,
            tags={names.COMMAND_TAG: "flexy sweep new"},
            asset_selection=[assets.sweep_plan.key],
        )
        answer = tick(instance)
        assert not answer.run_requests and answer.skip_message == "planned by flexy sweep new"


def test_the_backfill_leaves_a_sweep_to_the_run_that_makes_it() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("seed_batches", ["4b7193fd_0000", "4b7193fd_0001", "00000000_0000"])
        run = dg.DagsterRun(names.SWEEP_JOB, status=dg.DagsterRunStatus.STARTED, tags={names.SWEEP_TAG: "4b7193fd"})
        instance.add_run(run)
        progress = batches_in_progress(instance)
    assert progress == {metric: {"4b7193fd_0000", "4b7193fd_0001"} for metric in METRICS}
