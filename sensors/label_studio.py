"""New and changed tasks of a Label Studio project."""

import json
from urllib.parse import quote

import dagster as dg

from flexy_assets.inpaint.assets import label_tasks
from flexy_assets.scoring.work import Work
from resources.errors import FlexyError
from resources.http.client import HttpLimits
from resources.label_studio.client import LabelStudioClient, LabelStudioError
from resources.settings import Settings

MAX_IMPORT_ATTEMPTS = 3
"""Failed imports of one state of the project, after which the sensor leaves it."""

_TAG = "flexy/label_studio"
# Dagster ends a tick after a minute.
_QUICK = HttpLimits(timeout=20, attempts=1)
_NEWEST = quote(json.dumps({"ordering": ["-tasks:updated_at"]}))


def new_labels(settings: Settings) -> dg.SensorDefinition:
    """Return the sensor that imports new or changed tasks; it is on by default if a project is set."""
    enabled = settings.label_studio_project is not None

    @dg.sensor(
        name="new_labels",
        asset_selection=dg.AssetSelection.assets(label_tasks),
        minimum_interval_seconds=settings.watch_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if enabled else dg.DefaultSensorStatus.STOPPED,
        description="Imports the tasks of FLEXY_LABEL_STUDIO_PROJECT when there are new or changed ones.",
    )
    def sensor(context: dg.SensorEvaluationContext, work: dg.ResourceParam[Work]) -> dg.RunRequest | dg.SkipReason:
        project = work.settings.label_studio_project
        if project is None:
            return dg.SkipReason("no project is set: set FLEXY_LABEL_STUDIO_PROJECT to its number")
        try:
            state = f"{project}: {check_project(LabelStudioClient.from_settings(work.settings, _QUICK), project)}"
        except FlexyError as error:
            return dg.SkipReason(str(error))
        runs = context.instance.get_runs(dg.RunsFilter(tags={_TAG: state}))
        open_runs = any(not run.is_finished for run in runs)
        succeeded = any(run.status == dg.DagsterRunStatus.SUCCESS for run in runs)
        if state == context.cursor and (open_runs or succeeded):
            return dg.SkipReason("no new tasks")
        if len(runs) >= MAX_IMPORT_ATTEMPTS and not succeeded:
            return dg.SkipReason(f"the import of new tasks failed {len(runs)} times: see its runs and import by hand")
        context.update_cursor(state)
        config = {"ops": {"label_tasks": {"config": {"project": project}}}}
        return dg.RunRequest(f"{state} {len(runs)}", run_config=config, tags={_TAG: state})

    return sensor


def check_project(studio: LabelStudioClient, project: int) -> str:
    """Return the number of tasks and annotations of a project and the time of the last change, by one request."""
    match studio.call("GET", f"api/tasks?project={project}&page_size=1&query={_NEWEST}"):
        case {"total": int(tasks), "total_annotations": int(annotations), "tasks": [*newest]}:
            updated_at = newest[0].get("updated_at", "") if newest and isinstance(newest[0], dict) else ""
            return f"{tasks} tasks, {annotations} annotations {updated_at}".strip()
    raise LabelStudioError("Label Studio answers without tasks: check LABEL_STUDIO_URL")
