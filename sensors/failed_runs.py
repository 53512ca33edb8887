"""A run that failed is told of: in the log, and at an address the user names."""

from __future__ import annotations

import dagster as dg
import requests

from flexy_assets.execution import root_cause
from flexy_assets.scoring.work import Work


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Logs every failed run and posts it as JSON to FLEXY_FAILURE_WEBHOOK, where one is set.",
)
def failed_runs(context: dg.RunFailureSensorContext, work: dg.ResourceParam[Work]) -> None:
    """Log the failure and, where an address is set, post {"run", "job", "error", "text"} to it."""
    run, error = context.dagster_run, _cause(context)
    text = f"run {run.run_id[:8]} of {run.job_name} failed: {error}"
    context.log.error(text)
    if work.settings.failure_webhook:
        answer = post_failure(
            work.settings.failure_webhook.get_secret_value(),
            {"run": run.run_id, "job": run.job_name, "error": error, "text": text},
        )
        if answer:
            context.log.warning(answer)


def post_failure(url: str, message: dict[str, str]) -> str | None:
    """Why the message did not arrive, in words without the address; None where it did."""
    try:
        answer = requests.post(url, json=message, timeout=10, allow_redirects=False)
    except requests.RequestException as error:
        return f"the webhook could not be reached: {type(error).__name__}: check FLEXY_FAILURE_WEBHOOK"
    return (
        None
        if 200 <= answer.status_code < 300
        else f"the webhook answered {answer.status_code}: check FLEXY_FAILURE_WEBHOOK"
    )


def _cause(context: dg.RunFailureSensorContext) -> str:
    """The first step's error in one line; a run that died has none."""
    for event in context.get_step_failure_events():
        return root_cause(event.step_failure_data.error)
    return " ".join((context.failure_event.message or "no reason is recorded").split())
