"""Notices of failed Dagster runs: in the log, and at a URL the user sets."""

import dagster as dg
import requests

from flexy_assets.execution import root_cause
from flexy_assets.scoring.work import Work


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Logs every failed run and posts it as JSON to FLEXY_FAILURE_WEBHOOK if that is set.",
)
def failed_runs(context: dg.RunFailureSensorContext, work: dg.ResourceParam[Work]) -> None:
    """Log the failure and post {"run", "job", "error", "text"} to the webhook if one is set."""
    run, error = context.dagster_run, _cause(context)
    text = f"run {run.run_id[:8]} of {run.job_name} failed: {error}"
    context.log.error(text)
    if work.settings.failure_webhook:
        problem = post_failure(
            work.settings.failure_webhook.get_secret_value(),
            {"run": run.run_id, "job": run.job_name, "error": error, "text": text},
        )
        if problem:
            context.log.warning(problem)


def post_failure(url: str, message: dict[str, str]) -> str | None:
    """Post the message; return why it did not arrive, without the URL, or None."""
    try:
        answer = requests.post(url, json=message, timeout=10, allow_redirects=False)
    except requests.RequestException as error:
        return f"cannot reach the webhook: {type(error).__name__}: check FLEXY_FAILURE_WEBHOOK"
    if 200 <= answer.status_code < 300:
        return None
    return f"the webhook answered {answer.status_code}: check FLEXY_FAILURE_WEBHOOK"


def _cause(context: dg.RunFailureSensorContext) -> str:
    """Return the first failed step's error in one line, or the run's own message if no step failed."""
    for event in context.get_step_failure_events():
        return root_cause(event.step_failure_data.error)
    return " ".join((context.failure_event.message or "no error is recorded").split())
