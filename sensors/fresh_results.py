"""Tables, CSV and report after a backfill."""

import dagster as dg

from flexy_assets.sweep import jobs


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    monitored_jobs=[jobs.sweep, jobs.backfill_scores, jobs.rescore_scores, jobs.backfill_beside, jobs.heal_scores],
    request_job=jobs.results,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Makes the tables, the CSV and the report again after scores were computed.",
)
def fresh_results(context: dg.RunStatusSensorContext) -> dg.RunRequest:
    """Request one run of the results for each run that computed scores."""
    return dg.RunRequest(run_key=context.dagster_run.run_id)
