"""What starts work by itself: new rows, missing scores, new labels, and what is to be known when a run ends badly."""

from __future__ import annotations

import dagster as dg

from resources.settings import Settings
from sensors.dead_runs import dead_runs
from sensors.failed_runs import failed_runs
from sensors.fresh_results import fresh_results
from sensors.label_studio import new_labels
from sensors.missing_scores import missing_scores
from sensors.new_images import new_images


def sensors(settings: Settings) -> list[dg.SensorDefinition]:
    return [new_images(settings), new_labels(settings), dead_runs, failed_runs, fresh_results]


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    return [missing_scores(settings)]
