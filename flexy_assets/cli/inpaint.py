"""`flexy inpaint`: correct the faces in the tasks of a Label Studio project."""

from pathlib import Path
from typing import Any

import click

from flexy_assets.cli.command import NamesOption, editor_names, json_command
from flexy_assets.cli.session import Session


@click.group()
def inpaint() -> None:
    """Correct faces in Label Studio tasks."""


@inpaint.command("import")
@click.argument("export", required=False, type=click.Path(path_type=Path))
@click.option("--project", type=int, help="Number of a project at LABEL_STUDIO_URL, instead of EXPORT.")
@click.option(
    "--task-id", "task_ids", multiple=True, help="Only the task with this data.id; repeatable; by default all."
)
@click.option("--batch-size", type=int, default=50, show_default=True, help="Tasks in a partition.")
@json_command
def inpaint_import(export: Path | None, project: int | None, **options: Any) -> dict[str, Any]:
    """Import tasks from an export or a project.

    EXPORT is Label Studio's JSON. Run it again to fetch the images that are missing.
    """
    from flexy_assets.inpaint.command import import_label_tasks

    session = Session()
    options |= {"export": str(export or ""), "project": project, "task_ids": list(options["task_ids"])}
    return import_label_tasks(options, lambda: session.definitions, session.database)


@inpaint.command("run")
@click.option(
    "--task-id", "task_ids", multiple=True, help="Only the task with this data.id; repeatable; by default all."
)
@click.option(
    "--editor",
    cls=NamesOption,
    names=editor_names,
    default="",
    help="Refines swapped faces; by default the set's own of:",
)
@click.option("--budget", type=int, default=4, show_default=True, help="Full denoises a task; 0 swaps only.")
@click.option(
    "--widen",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of the mask's longer side to edit around the mask.",
)
@click.option("--steps", type=int, default=0, help="Steps of a full denoise; by default the editor's own.")
@click.option("--guidance", type=float, default=0.0, help="By default the editor's own.")
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Weight of consistency.")
@click.option("--beta", type=float, default=1.0, show_default=True, help="Weight of quality.")
@click.option("--gamma", type=float, default=2.0, show_default=True, help="Weight of identity.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same candidates.")
@json_command
def inpaint_run(task_ids: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Swap, refine, judge and select faces.

    Of the imported tasks, partition by partition. Run it again to continue.
    """
    from flexy_assets.inpaint.command import run_inpainting

    session = Session()
    return run_inpainting(task_ids, options, lambda: session.definitions, session.database)


@inpaint.command("push")
@click.option("--model-version", default="", help="The predictions' model version; flexy/EDITOR by default.")
@click.option("--file-only", is_flag=True, help="Only write the file that Label Studio can import; send nothing.")
@json_command
def inpaint_push(model_version: str, file_only: bool) -> dict[str, Any]:
    """Send predictions to Label Studio.

    One prediction for each selected image; each is sent once.
    """
    from flexy_assets.inpaint.command import push_to_label_studio

    session, options = Session(), {"model_version": model_version, "send": not file_only}
    return push_to_label_studio(options, lambda: session.definitions, session.database)


@inpaint.command("review")
@json_command
def inpaint_review() -> dict[str, Any]:
    """Measure agreement with the reviewers.

    Reads the reviewers' verdicts and compares them with the potential and each score.
    """
    from flexy_assets.inpaint.command import review_agreement

    session = Session()
    return review_agreement(lambda: session.definitions, session.database)
