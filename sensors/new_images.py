"""Rows that anybody added to the table of images."""

import dagster as dg

from flexy_assets.scoring.work import Work
from flexy_assets.storage.adoption import adopt_rows
from flexy_assets.sweep import jobs
from resources.settings import Settings


def new_images(settings: Settings) -> dg.SensorDefinition:
    """Return the sensor that assigns new rows to partitions and, with FLEXY_SCORE_NEW=1, scores them at once."""

    @dg.sensor(
        name="new_images",
        job=jobs.backfill_scores,
        minimum_interval_seconds=settings.watch_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Assigns new rows to partitions; with FLEXY_SCORE_NEW=1 they are scored at once, else by the"
        " nightly backfill.",
    )
    def sensor(context: dg.SensorEvaluationContext, work: dg.ResourceParam[Work]) -> dg.RunRequest | dg.SkipReason:
        if work.settings.score_new:
            return jobs.request_backfill(context.instance, work.database, work.store, work.settings)
        rows = adopt_rows(work.database, work.settings)
        partitions = jobs.register_partitions(context.instance, work.database)
        if not partitions and not rows:
            return dg.SkipReason("no new rows")
        return dg.SkipReason(f"{rows} new rows, {len(partitions)} new partitions: the nightly backfill scores them")

    return sensor
