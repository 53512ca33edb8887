"""Dagster runs whose process was killed."""

import dagster as dg

from flexy_assets.dead_runs import end_dead_runs


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs whose process is dead as failed and frees their pool slots; Dagster itself notices only"
    " while the server that started them is up.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """End dead runs; completed work is kept, and the nightly backfill computes what is missing."""
    ended = end_dead_runs(context.instance)
    return dg.SkipReason(f"ended {', '.join(ended)}" if ended else "no dead runs")
