"""Copies the source images of an edit set below the image root, where all images of a comparison lie."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid5

import polars as pl

from flexy_assets.edits.plan import Comparison
from flexy_assets.edits.tasks import EditTask
from flexy_assets.storage.edits import EditTaskRow
from resources.images import ImageStore

EDIT_TASKS_SCHEMA: Final = dict.fromkeys(("batch", "task_id", "prompt", "source"), pl.String())
"""The columns of the asset `edit_tasks`."""


def copy_sources(store: ImageStore, folder: Path, tasks: Sequence[EditTask]) -> dict[str, tuple[str, str]]:
    """Copy each task's source as PNG, once per content; return path and SHA-256 of the copy by task id."""
    user_images = ImageStore(str(folder))
    copies: dict[str, tuple[str, str]] = {}
    for task in tasks:
        if task.image_path not in copies:
            image = user_images.read(task.image_path)
            digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
            path = f"edits/sources/{digest[:32]}.png"
            copies[task.image_path] = path, store.write(path, image)
    return {task.id: copies[task.image_path] for task in tasks}


def dataset_digest(tasks: Sequence[EditTask], sources: dict[str, tuple[str, str]]) -> str:
    """Return a digest of an edit set: ids, instructions and the content of the sources."""
    lines = "\n".join(repr((task.id, task.prompt, sources[task.id][1])) for task in tasks)
    return hashlib.sha256(lines.encode()).hexdigest()


def task_rows(plan: Comparison, tasks: Sequence[EditTask], sources: dict[str, tuple[str, str]]) -> list[EditTaskRow]:
    """Return the tasks as rows of the comparison."""
    run = plan.run_id
    return [
        EditTaskRow(uuid5(run, task.id), run, plan.batch(position), position, task.id, task.prompt, *sources[task.id])
        for position, task in enumerate(tasks)
    ]


@dataclass(frozen=True)
class PlannedComparison:
    """A comparison that was planned, its tasks, and the lines of the edit set that were skipped."""

    plan: Comparison
    tasks: Sequence[EditTaskRow]
    skipped: Sequence[str]

    @property
    def batches(self) -> list[str]:
        return sorted({task.batch for task in self.tasks})


def task_table(rows: Sequence[EditTaskRow]) -> pl.DataFrame:
    """Return the rows as a frame (`EDIT_TASKS_SCHEMA`)."""
    cells = [(row.batch, row.name, row.prompt, row.image_path) for row in rows]
    return pl.DataFrame(cells, EDIT_TASKS_SCHEMA, orient="row")
