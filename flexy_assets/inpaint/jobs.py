"""A job for tasks by name: a run of the assets covers whole batches."""

import dagster as dg

from flexy_assets.inpaint import metrics, refine
from flexy_assets.inpaint.assets import InpaintConfig
from flexy_assets.reporting.progress import progress_bar
from flexy_assets.scoring.missing_scores import Work
from flexy_assets.storage import labels
from flexy_assets.storage.migrate import migrate
from resources.database import Database
from resources.images import ImageStore
from resources.models.slot import ModelSlot
from resources.settings import Settings


class InpaintTasksConfig(InpaintConfig):
    """The tasks to put right, by their names (data.id), and how."""

    tasks: list[str]


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def inpaint(
    config: InpaintTasksConfig,
    database: dg.ResourceParam[Database],
    images: dg.ResourceParam[ImageStore],
    slot: dg.ResourceParam[ModelSlot],
    settings: dg.ResourceParam[Settings],
) -> None:
    """Swap, refine, judge and choose in these tasks. No batch is done by that, so none is reported."""
    migrate(database)
    work, plan = Work(database, images, slot, settings), config.plan(settings)
    with database.begin(reading=True) as connection:
        tasks = [task for task in labels.label_tasks_of(connection) if task.name in config.tasks]
    with slot:
        with progress_bar("faces swapped", len(tasks), " tasks") as bar:
            refine.swap_faces(work, tasks, bar.update)
        rows = refine.plan_tasks(work, plan, tasks)
        with progress_bar("refining", sum(plan.nfe) * len(rows), " steps") as bar:
            refine.refine_tasks(work, plan, rows, bar.update)
        judge = metrics.judge_candidates(work, rows, refine.candidates_with_swap(work, rows))
    refine.select_best(work, plan, rows, judge)


@dg.job(description="Put faces right in some tasks, whatever their batches.")
def inpaint_tasks() -> None:
    inpaint()
