"""Runs whose process was killed, with the machine or by itself."""

from __future__ import annotations

import dagster as dg

from flexy_assets.dead_runs import end_dead_runs


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs whose process is gone and frees their pool slot; Dagster itself sees it only while the"
    " server that started them lives.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """End what nobody works at any more; what it had committed stays, and what is missing is filled at night."""
    ended = end_dead_runs(context.instance)
    return dg.SkipReason(f"ended {', '.join(ended)}" if ended else "every run that is open has its process")
