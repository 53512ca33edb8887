"""Binds assets, jobs, schedules, sensors and resources; nothing else."""

from __future__ import annotations

import dagster as dg

import sensors
from flexy_assets.sweep import assets as sweep
from flexy_assets.sweep import jobs
from resources.database import Database
from resources.images import ImageStore
from resources.models.slot import ModelSlot
from resources.parquet import ParquetTables
from resources.settings import Settings

settings = Settings.read()

defs = dg.Definitions(
    assets=dg.load_assets_from_modules([sweep]),
    jobs=[jobs.heal_scores, jobs.rescore_scores],
    schedules=sensors.schedules(settings),
    sensors=sensors.sensors(),
    resources={
        "settings": settings,
        "database": Database(settings.database_url),
        "images": ImageStore(settings.images),
        "slot": ModelSlot(),
        "io_manager": ParquetTables(settings.tables),
    },
    # One process runs a run's steps one after another, so that a model is loaded once for all batches.
    executor=dg.in_process_executor,
)
