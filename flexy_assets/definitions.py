"""Binds assets, jobs, schedules, sensors and resources; nothing else."""

import dagster as dg

import sensors
from flexy_assets.dead_runs import io_manager_with_process_tag
from flexy_assets.edits import assets as edits
from flexy_assets.inpaint import assets as inpaint
from flexy_assets.inpaint.jobs import inpaint_tasks
from flexy_assets.scoring.work import Work
from flexy_assets.sweep import assets as sweep
from flexy_assets.sweep import checks, jobs
from resources.parquet import ParquetTables
from resources.settings import Settings


def build_definitions(settings: Settings) -> dg.Definitions:
    """Return the code location for these settings; nothing is opened, loaded or written."""
    return dg.Definitions(
        assets=[
            asset.map_asset_specs(lambda spec: spec.replace_attributes(owners=settings.owners))
            for asset in dg.load_assets_from_modules([sweep, edits, inpaint])
            if isinstance(asset, dg.AssetsDefinition)
        ],
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=[
            *(
                jobs.sweep,
                jobs.backfill_scores,
                jobs.rescore_scores,
                jobs.backfill_beside,
                jobs.heal_scores,
                jobs.try_image,
                jobs.results,
            ),
            inpaint_tasks,
        ],
        schedules=sensors.schedules(settings),
        sensors=sensors.sensors(settings),
        resources={
            "work": Work.from_settings(settings),
            "io_manager": io_manager_with_process_tag(ParquetTables(settings.tables)),
        },
        # One process runs a run's steps one after another, so that a model is loaded once for all batches.
        executor=dg.in_process_executor,
    )


defs = build_definitions(Settings.read())
