"""Reads an edit set: which pictures are to be edited, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resources.errors import BadInputError
from resources.images import ImageStore, UnreadableImageError
from resources.json_lines import BadLineError, SkippedLine, identifier_field, read_json_lines, text_field
from resources.prompts import MAX_PROMPT

MAX_IMAGE_BYTES = 200_000_000
"""A larger file is left out unread: the largest picture that `ImageStore` takes is smaller as an 8-bit PNG."""

_READ_THREADS = 64


@dataclass(frozen=True)
class EditTask:
    """One edit to make: `image_path` is relative to the edit set's folder, `line` its line there, from 1."""

    id: str
    image_path: str
    prompt: str
    line: int


def read_tasks(path: Path) -> tuple[list[EditTask], list[SkippedLine]]:
    """The tasks of an edit set, in order, and the lines that were left out.

    A line is `{"id": …, "image_path": …, "prompt": …}` as in qwen3-score, the path relative to the file and inside
    its folder; other keys and blank lines are passed over. Every picture is opened. A line is left out where
    something is missing, empty or of the wrong type, where its id was seen before and where its picture cannot be
    opened. Raises `BadInputError` for a file that cannot be read or holds nothing.
    """
    tasks: dict[str, EditTask] = {}
    skipped = []
    for number, entry in read_json_lines(path):
        try:
            task = _task(number, entry)
            if first := tasks.get(task.id):
                raise BadLineError(f"id {task.id!r} is that of line {first.line}")
            tasks[task.id] = task
        except BadLineError as error:
            skipped.append(SkippedLine(number, str(error)))
    if not tasks and not skipped:
        raise BadInputError(f'{path} has no task in it: write {{"id": …, "image_path": …, "prompt": …}}, one a line')
    reasons = _find_unreadable(path.parent, sorted({task.image_path for task in tasks.values()}))
    skipped += [
        SkippedLine(task.line, reasons[task.image_path]) for task in tasks.values() if task.image_path in reasons
    ]
    good = [task for task in tasks.values() if task.image_path not in reasons]
    return good, sorted(skipped, key=lambda each: each.line)


def _task(number: int, entry: dict[str, object] | BadLineError) -> EditTask:
    if isinstance(entry, BadLineError):
        raise entry
    return EditTask(
        identifier_field(entry), text_field(entry, "image_path", 1000), text_field(entry, "prompt", MAX_PROMPT), number
    )


def _find_unreadable(folder: Path, paths: list[str]) -> dict[str, str]:
    """Why each of the pictures that cannot be opened cannot."""
    store, reasons = ImageStore(str(folder)), {}
    for path in paths:
        size = _bytes(folder / path)
        if size > MAX_IMAGE_BYTES:
            reasons[path] = f"image {path!r} has {size} bytes: too large"
    rest = [path for path in paths if path not in reasons]
    for first in range(0, len(rest), _READ_THREADS):
        some = rest[first : first + _READ_THREADS]
        for path, picture in zip(some, store.read_many([(path, None) for path in some]), strict=True):
            if isinstance(picture, UnreadableImageError):
                reasons[path] = " ".join(str(picture).split())
    return reasons


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # the store says it better
        return 0
