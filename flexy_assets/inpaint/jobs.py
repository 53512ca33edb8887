"""The job that inpaints single tasks; the assets cover whole partitions."""

import dagster as dg
from pydantic import Field

from flexy_assets.inpaint import metrics, refine
from flexy_assets.inpaint.assets import InpaintConfig
from flexy_assets.reporting.progress import progress_bar
from flexy_assets.scoring.work import Work
from flexy_assets.storage import labels
from flexy_assets.storage.migrate import migrate


class InpaintTasksConfig(InpaintConfig):
    """The tasks to inpaint, and the settings."""

    tasks: list[str] = Field(description="The names of the tasks (data.id).")


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def inpaint(config: InpaintTasksConfig, work: dg.ResourceParam[Work]) -> None:
    """Swap, refine, judge and select for these tasks; no partition is reported, as none is complete."""
    migrate(work.database)
    plan = config.plan(work.settings)
    with work.database.begin(reading=True) as connection:
        tasks = [task for task in labels.label_tasks_of(connection) if task.name in config.tasks]
    with work.slot:
        with progress_bar("faces swapped", len(tasks), " tasks") as bar:
            refine.swap_faces(work, tasks, bar.update)
        rows = refine.plan_tasks(work, plan, tasks)
        with progress_bar("refining", sum(plan.nfe) * len(rows), " steps") as bar:
            refine.refine_tasks(work, plan, rows, bar.update)
        judge = metrics.judge_candidates(work, rows, refine.candidates_with_swap(work, rows))
    refine.select_best(work, plan, rows, judge)


@dg.job(description="Inpaint the faces of single tasks, across partitions.")
def inpaint_tasks() -> None:
    inpaint()
