"""Reads an edit set: source images and instructions."""

from dataclasses import dataclass
from pathlib import Path

from resources.chunks import split_chunks
from resources.errors import BadInputError
from resources.images import ImageStore, UnreadableImageError
from resources.json_lines import BadLineError, SkippedLine, identifier_field, read_json_lines, text_field
from resources.prompts import MAX_PROMPT

MAX_IMAGE_BYTES = 200_000_000
"""Larger files are skipped unread: the largest image that `ImageStore` accepts is smaller as an 8-bit PNG."""

_READ_THREADS = 64


@dataclass(frozen=True)
class EditTask:
    """One edit: `prompt` is the instruction, `image_path` is relative to its file's folder, `line` counts from 1."""

    id: str
    image_path: str
    prompt: str
    line: int


def read_tasks(path: Path) -> tuple[list[EditTask], list[SkippedLine]]:
    """Return the tasks of an edit set, in order, and the skipped lines.

    A line is `{"id": …, "image_path": …, "prompt": …}` as in qwen3-score, the path relative to the file and inside
    its folder. Other keys and blank lines are ignored. Every image is opened. A line is skipped if a field is
    missing, empty or of the wrong type, if its id occurred before, or if its image is unreadable. Raises
    `BadInputError` for an unreadable or empty file.
    """
    tasks: dict[str, EditTask] = {}
    skipped = []
    for number, entry in read_json_lines(path):
        try:
            task = _task(number, entry)
            if first := tasks.get(task.id):
                raise BadLineError(f"duplicate id {task.id!r}: line {first.line} has it already")
            tasks[task.id] = task
        except BadLineError as error:
            skipped.append(SkippedLine(number, str(error)))
    if not tasks and not skipped:
        raise BadInputError(f'no tasks in {path}: must have one {{"id": …, "image_path": …, "prompt": …}} a line')
    reasons = _find_unreadable(path.parent, sorted({task.image_path for task in tasks.values()}))
    unreadable = [task for task in tasks.values() if task.image_path in reasons]
    skipped += [SkippedLine(task.line, reasons[task.image_path]) for task in unreadable]
    readable = [task for task in tasks.values() if task.image_path not in reasons]
    return readable, sorted(skipped, key=lambda line: line.line)


def _task(number: int, entry: dict[str, object] | BadLineError) -> EditTask:
    if isinstance(entry, BadLineError):
        raise entry
    key, image_path = identifier_field(entry), text_field(entry, "image_path", 1000)
    return EditTask(key, image_path, text_field(entry, "prompt", MAX_PROMPT), number)


def _find_unreadable(folder: Path, paths: list[str]) -> dict[str, str]:
    """Return the error of each image that cannot be opened, by path."""
    store, reasons = ImageStore(str(folder)), {}
    for path in paths:
        size = _file_size(folder / path)
        if size > MAX_IMAGE_BYTES:
            reasons[path] = f"image {path!r} has {size} bytes: must be at most {MAX_IMAGE_BYTES}"
    for chunk in split_chunks([path for path in paths if path not in reasons], _READ_THREADS):
        for path, image in zip(chunk, store.read_many([(path, None) for path in chunk]), strict=True):
            if isinstance(image, UnreadableImageError):
                reasons[path] = " ".join(str(image).split())
    return reasons


def _file_size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # the image store reports the error
        return 0
