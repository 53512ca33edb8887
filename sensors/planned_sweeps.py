"""Makes and scores the sweeps that are planned in the UI."""

from typing import Any

import dagster as dg

from flexy_assets import names
from flexy_assets.sweep import assets, jobs


@dg.asset_sensor(
    name="planned_sweeps",
    asset_key=assets.sweep_plan.key,
    job=jobs.sweep,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Has the images of a sweep made and scored once its sweep_plan is materialized. Sweeps that `flexy`"
    " plans wait for `flexy sweep run`.",
)
def planned_sweeps(context: dg.SensorEvaluationContext, event: dg.EventLogEntry) -> dg.RunRequest | dg.SkipReason:
    """Request one run of the job `sweep`, with the config that the sweep was planned by."""
    run = context.instance.get_run_by_id(event.run_id)
    if run is None:
        return dg.SkipReason(f"run {event.run_id[:8]}, which planned a sweep, is no longer on record")
    if names.COMMAND_TAG in run.tags:
        return dg.SkipReason(f"planned by {run.tags[names.COMMAND_TAG]}")
    ops: Any = run.run_config.get("ops", {})
    config = ops.get(assets.sweep_plan.op.name, {}).get("config", {})
    return dg.RunRequest(run_key=run.run_id, run_config=jobs.sweep_config(config))
