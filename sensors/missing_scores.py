"""Every night, the scores that are missing."""

from __future__ import annotations

import dagster as dg
from dagster._utils.schedules import is_valid_cron_schedule

from flexy_assets.scoring.work import Work
from flexy_assets.sweep import jobs
from resources.errors import BadInputError
from resources.settings import Settings


def missing_scores(settings: Settings) -> dg.ScheduleDefinition:
    """At the user's cron line: one run that fills every hole there is, unless one is at it.

    Raises `BadInputError` for a cron line that cannot be read.
    """
    if not is_valid_cron_schedule(settings.nightly):
        raise BadInputError(f"FLEXY_NIGHTLY={settings.nightly} is no cron line: write one as in '0 2 * * *'")

    @dg.schedule(
        name="missing_scores",
        job=jobs.backfill_scores,
        cron_schedule=settings.nightly,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Finds the scores that are missing, whatever their scatter, and fills them in one run.",
    )
    def schedule(context: dg.ScheduleEvaluationContext, work: dg.ResourceParam[Work]) -> dg.RunRequest | dg.SkipReason:
        return jobs.request_backfill(context.instance, work.database, work.store, work.settings)

    return schedule
