"""Brings the sources of an edit set under the image root, where every picture of a comparison lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import UUID, uuid5

import polars as pl

from flexy_assets.edits.plan import Comparison
from flexy_assets.edits.tasks import EditTask
from flexy_assets.storage.edits import EditTaskRow
from resources.images import ImageStore

EDIT_TASKS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "batch": pl.String(),
    "task_id": pl.String(),
    "prompt": pl.String(),
    "source": pl.String(),
}
"""The columns of the asset `edit_tasks`."""


def copy_sources(store: ImageStore, folder: Path, tasks: Sequence[EditTask]) -> dict[str, tuple[str, str]]:
    """Copy each task's source as PNG, once by its content; path and SHA-256 of the copy by the task's id."""
    given, brought, found = ImageStore(str(folder)), {}, {}
    for task in tasks:
        if task.image_path not in brought:
            picture = given.read(task.image_path)
            content = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
            path = f"edits/sources/{content[:32]}.png"
            brought[task.image_path] = path, store.write(path, picture)
        found[task.id] = brought[task.image_path]
    return found


def dataset_digest(tasks: Sequence[EditTask], sources: dict[str, tuple[str, str]]) -> str:
    """What an edit set is told apart by: ids, prompts and the sources' content."""
    lines = "\n".join(repr((task.id, task.prompt, sources[task.id][1])) for task in tasks)
    return hashlib.sha256(lines.encode()).hexdigest()


def task_rows(plan: Comparison, tasks: Sequence[EditTask], sources: dict[str, tuple[str, str]]) -> list[EditTaskRow]:
    """The tasks as the comparison's rows."""
    run: UUID = plan.run_id
    return [
        EditTaskRow(uuid5(run, task.id), run, plan.batch(position), position, task.id, task.prompt, *sources[task.id])
        for position, task in enumerate(tasks)
    ]


def task_table(rows: Sequence[EditTaskRow]) -> pl.DataFrame:
    """The comparison's rows as `TASKS`."""
    return pl.DataFrame(
        [(row.batch, row.name, row.prompt, row.image_path) for row in rows], EDIT_TASKS_SCHEMA, orient="row"
    )
