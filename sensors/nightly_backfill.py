"""The nightly backfill of missing scores."""

import dagster as dg

from flexy_assets.scoring.work import Work
from flexy_assets.sweep import jobs
from resources.errors import BadInputError
from resources.settings import Settings


def nightly_backfill(settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule, at FLEXY_NIGHTLY in FLEXY_TIMEZONE. Raises `BadInputError` for an invalid cron schedule."""

    def request_backfill(
        context: dg.ScheduleEvaluationContext, work: dg.ResourceParam[Work]
    ) -> dg.RunRequest | dg.SkipReason:
        return jobs.request_backfill(context.instance, work.database, work.store, work.settings)

    try:
        return dg.schedule(
            name="nightly_backfill",
            job=jobs.backfill_scores,
            cron_schedule=settings.nightly,
            execution_timezone=settings.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Computes every missing score in one Dagster run, unless a run is already computing it.",
        )(request_backfill)
    except dg.DagsterInvalidDefinitionError:
        remedy = "write five fields, for example 0 2 * * *"
        raise BadInputError(f"invalid FLEXY_NIGHTLY {settings.nightly!r}: {remedy}") from None
