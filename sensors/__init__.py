"""Schedules and sensors: new rows, missing scores, new Label Studio tasks, failed and dead Dagster runs."""

import dagster as dg

from resources.settings import Settings
from sensors.dead_runs import dead_runs
from sensors.failed_runs import failed_runs
from sensors.fresh_results import fresh_results
from sensors.label_studio import new_labels
from sensors.new_images import new_images
from sensors.nightly_backfill import nightly_backfill
from sensors.planned_sweeps import planned_sweeps


def sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Return all sensors."""
    return [new_images(settings), new_labels(settings), dead_runs, failed_runs, fresh_results, planned_sweeps]


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """Return all schedules."""
    return [nightly_backfill(settings)]
