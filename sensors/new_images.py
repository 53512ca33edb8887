"""New rows, whoever wrote them."""

from __future__ import annotations

import dagster as dg

from flexy_assets.scoring.work import Work
from flexy_assets.storage.adoption import adopt_rows
from flexy_assets.sweep import jobs
from resources.settings import Settings


def new_images(settings: Settings) -> dg.SensorDefinition:
    """New rows become seed batches and, if the user wants, a run."""

    @dg.sensor(
        name="new_images",
        job=jobs.backfill_scores,
        minimum_interval_seconds=settings.watch_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Gives new rows a seed batch; with FLEXY_SCORE_NEW=1 they are scored at once, not at night.",
    )
    def sensor(context: dg.SensorEvaluationContext, work: dg.ResourceParam[Work]) -> dg.RunRequest | dg.SkipReason:
        if work.settings.score_new:
            return jobs.request_backfill(context.instance, work.database, work.store, work.settings)
        rows = adopt_rows(work.database, work.settings)
        new = jobs.register_partitions(context.instance, work.database)
        if not new and not rows:
            return dg.SkipReason("no new rows")
        return dg.SkipReason(f"{rows} new rows, {len(new)} new batches; their scores are filled at night")

    return sensor
