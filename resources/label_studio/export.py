"""Reads Label Studio tasks, from an export file or from the list of its API."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from resources.errors import BadInputError
from resources.files import open_regular
from resources.json_lines import BadLineError, identifier_field, integer_field, parse_json, text_field
from resources.prompts import MAX_PROMPT

MAX_EXPORT_BYTES = 1_000_000_000
"""The largest export that is read, because all of it is in memory."""

MAX_URL_CHARACTERS = 8_000
"""Characters of a URL; signed ones have about 1,500."""

# Query parameters that sign a URL for a while: S3, Google, CloudFront, Azure, and older forms of each.
_SIGNATURE = re.compile(
    r"(x-(amz|goog)-.*|signature|sig|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|s[etvpr]|token)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")
_BRUSHES = ("brushlabels", "brush")


@dataclass(frozen=True)
class ReviewVerdict:
    """The choices of one annotation, verbatim, such as `No Issues`.

    `annotation` is its id, `at` the time of its last change, as Label Studio writes it, `by` the annotator's id or
    e-mail address; None where they are not given.
    """

    choices: tuple[str, ...]
    annotation: int | None = None
    at: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class BrushStroke:
    """A painted region, see `masks.decode_rle`. `to_name` is the image's tag in the labelling form."""

    rle: bytes = field(repr=False)
    width: int
    height: int
    to_name: str = ""


@dataclass(frozen=True)
class LabelTask:
    """A scene, and the character whose face is to be inpainted in it.

    `id` is the task's name, `data.id`; `task` and `project` are Label Studio's own numbers, None where they are
    missing. Images are URLs, paths on the Label Studio server, or files relative to the export; `mask_image` and
    `final_image` may be "". `strokes` is the mask that the last annotator painted, which replaces `mask_image`; all
    strokes together are one mask. There is always one of the two.
    """

    id: str
    task: int | None
    project: int | None
    init_image: str = field(repr=False)
    character_image: str = field(repr=False)
    mask_image: str = field(default="", repr=False)
    final_image: str = field(default="", repr=False)
    character_id: str = ""
    character_name: str = ""
    prompt: str = ""
    strokes: tuple[BrushStroke, ...] = ()
    verdicts: tuple[ReviewVerdict, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the task's content, without verdicts and the signatures of URLs."""
        urls = (self.init_image, self.character_image, self.mask_image, self.final_image)
        images = [strip_signature(url) for url in urls]
        strokes = [[hashlib.sha256(s.rle).hexdigest(), s.width, s.height, s.to_name] for s in self.strokes]
        content = [self.id, images, self.character_id, self.character_name, self.prompt, strokes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class TaskProblem:
    """A defect of an entry of the list, counted from 1; `entry` 0 is the file itself.

    `id` is the task's name where it has one. If the task is not `left_out`, only its defective part is.
    """

    entry: int
    id: str | None
    reason: str
    left_out: bool = True

    def __str__(self) -> str:
        if not self.entry:
            return self.reason
        return f"task {self.id}: {self.reason}" if self.id else f"entry {self.entry}: {self.reason}"


def read_export_file(path: Path) -> tuple[list[LabelTask], list[TaskProblem]]:
    """Return the tasks of a Label Studio export (JSON), in order, and the defects of the others.

    Of a truncated or broken file, the complete tasks before that position are kept. Raises `BadInputError` for a file
    that cannot be read, is not a list of tasks, or is empty.
    """
    try:
        if path.stat().st_size > MAX_EXPORT_BYTES:
            raise BadInputError(f"{path} is larger than {MAX_EXPORT_BYTES} bytes: export fewer tasks at a time")
        with open_regular(path, MAX_EXPORT_BYTES) as file:
            content = file.read()
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}: name a Label Studio export") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(content) - 3:
            raise BadInputError(f"{path} is not UTF-8 text from byte {error.start} on: export it again") from None
        text = content[: error.start].decode("utf-8-sig")  # truncated within a character
    if not text.lstrip().startswith("["):
        raise BadInputError(f"{path} is not a list of tasks: export it from Label Studio as JSON")
    tasks, problems = parse_tasks(_iterate_entries(text))
    if not tasks and not problems:
        raise BadInputError(f"{path} contains no tasks: export it from Label Studio as JSON")
    return tasks, problems


def parse_tasks(entries: Iterable[Any]) -> tuple[list[LabelTask], list[TaskProblem]]:
    """Return the tasks in a list of JSON objects, in order, and the defects of the others.

    An entry is left out where a field is missing, empty or of the wrong type, and where its `data.id` occurred before:
    users name a task by it, so the first one is used.
    """
    tasks: dict[str, LabelTask] = {}
    numbers: dict[str, int] = {}
    problems = []
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, _FileError):
            problems.append(TaskProblem(0, None, str(entry)))
            continue
        name = None
        try:
            if isinstance(entry, BadLineError):
                raise entry
            name = identifier_field(_task_data(entry))
            if name in tasks:
                raise BadLineError(f"its id is that of entry {numbers[name]}: give it another")
            tasks[name], errors = _read_task(name, entry)
            numbers[name] = number
            problems += [TaskProblem(number, name, reason, left_out=False) for reason in errors]
        except BadLineError as error:
            problems.append(TaskProblem(number, name, str(error)))
    return list(tasks.values()), problems


def _task_data(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise BadLineError("it is not a JSON object")
    data = entry.get("data")
    if not isinstance(data, dict):
        raise BadLineError("it has no data: export as JSON, not JSON-MIN")
    return data


def _read_task(name: str, entry: dict[str, Any]) -> tuple[LabelTask, list[str]]:
    """Return a task, and the errors of its unreadable annotations."""
    data = entry["data"]
    strokes, verdicts, errors = _read_annotations(entry)

    def optional_text(key: str, most: int) -> str:
        return text_field(data, key, most) if data.get(key) not in (None, "") else ""

    mask = optional_text("mask_image_url", MAX_URL_CHARACTERS)
    if not mask and not strokes:
        raise BadLineError("it has neither mask_image_url nor a painted mask")
    task = LabelTask(
        id=name,
        task=_optional_integer(entry, "id"),
        project=_optional_integer(entry, "project"),
        init_image=text_field(data, "init_image_url", MAX_URL_CHARACTERS),
        character_image=text_field(data, "character_image_url", MAX_URL_CHARACTERS),
        mask_image=mask,
        final_image=optional_text("image_url", MAX_URL_CHARACTERS),
        character_id=identifier_field(data, "character_id") if data.get("character_id") not in (None, "") else "",
        character_name=optional_text("character_name", 200),
        prompt=optional_text("prompt", MAX_PROMPT),
        strokes=strokes,
        verdicts=verdicts,
    )
    return task, errors


def _optional_integer(entry: dict[str, Any], key: str) -> int | None:
    return integer_field(entry, key) if entry.get(key) is not None else None


def _read_annotations(entry: dict[str, Any]) -> tuple[tuple[BrushStroke, ...], tuple[ReviewVerdict, ...], list[str]]:
    """Return strokes and verdicts of the annotations that were not cancelled, and the errors of unreadable ones."""
    painted: list[tuple[str, tuple[BrushStroke, ...]]] = []
    verdicts, errors = [], []
    annotations = entry.get("annotations")
    if annotations is not None and not isinstance(annotations, list):
        return (), (), ["its annotations are skipped: they are not a list"]
    for number, annotation in enumerate(annotations or [], 1):
        try:
            if not isinstance(annotation, dict):
                raise BadLineError("it is not a JSON object")
            if annotation.get("was_cancelled"):
                continue
            time = next((str(annotation[key]) for key in ("updated_at", "created_at") if annotation.get(key)), None)
            results = annotation.get("result")
            if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
                raise BadLineError("its result is not a list of JSON objects")
            lists = [_read_choices(result) for result in results if result.get("type") == "choices"]
            choices = tuple(chain.from_iterable(lists))
            strokes = tuple(_read_stroke(result) for result in results if result.get("type") in _BRUSHES)
            if choices:
                annotator = _name_annotator(annotation.get("completed_by"))
                number_on_server = _optional_integer(annotation, "id")
                verdicts.append(ReviewVerdict(choices, number_on_server, time and time[:40], annotator))
            if strokes:
                painted.append((time or "", strokes))
        except BadLineError as error:
            errors.append(f"annotation {number} is skipped: {error}")
    # At equal times the last in the list wins.
    _, strokes = max(reversed(painted), key=itemgetter(0), default=("", ()))
    return strokes, tuple(verdicts), errors


def _read_choices(result: dict[str, Any]) -> list[str]:
    match result.get("value"):
        case {"choices": [*choices]}:
            return [text_field({"choice": choice}, "choice", 200) for choice in choices]
    raise BadLineError("its choices are not a list")


def _name_annotator(user: Any) -> str | None:
    match user:
        case {"id": int(number)} | int(number):
            return str(number) if abs(number) < 2**63 else None
        case {"email": str(address)} | str(address):
            return address[:200]
    return None


def _read_stroke(result: dict[str, Any]) -> BrushStroke:
    value = result.get("value")
    if not isinstance(value, dict) or value.get("format") != "rle":
        raise BadLineError("its brush mask is not in the format rle")
    if result.get("image_rotation"):
        raise BadLineError("its brush mask is painted on a rotated image: rotate it back and paint again")
    rle = value.get("rle")
    if not isinstance(rle, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in rle):
        raise BadLineError("its brush mask is not a list of bytes")
    width, height = (integer_field(result, key) for key in ("original_width", "original_height"))
    name = result.get("to_name")
    return BrushStroke(bytes(rle), width, height, name[:200] if isinstance(name, str) else "")


def strip_signature(url: str) -> str:
    """Return a URL without its signature, so that it is the same in the next export."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    unsigned = [item for item in parts.query.split("&") if item and not _SIGNATURE.fullmatch(item.partition("=")[0])]
    return parts._replace(query="&".join(unsigned)).geturl()


class _FileError(Exception):
    """Why the rest of a file cannot be read."""


def _iterate_entries(text: str) -> Iterator[Any]:
    """Yield the entries of a JSON list, each parsed by itself; an error takes the place of an unreadable one."""

    def make_error(position: int) -> _FileError:
        byte = len(text[:position].encode())
        cause = f"truncated at byte {byte}" if position >= len(text) else f"not JSON from byte {byte} on"
        return _FileError(f"the file is {cause}: the tasks before are kept")

    def skip_space(position: int) -> int:
        space = _SPACE.match(text, position)
        return space.end() if space else position

    position = skip_space(text.index("[") + 1)
    if text[position : position + 1] == "]":
        return
    while True:
        start, position = position, _find_end(text, position)
        if position > len(text):
            # Reported at the end of the file: the rest of the entry may be missing there.
            yield make_error(len(text))
            return
        if position == start:
            yield make_error(position)
            return
        try:
            yield parse_json(text[start:position])
        except BadLineError as error:
            yield error
        position = skip_space(position)
        if text[position : position + 1] == "]":
            if skip_space(position + 1) < len(text):
                yield make_error(skip_space(position + 1))
            return
        if text[position : position + 1] != ",":
            yield make_error(position)
            return
        position = skip_space(position + 1)


def _find_end(text: str, start: int) -> int:
    """Return the end of the JSON value that begins at `start`, however deep it is.

    The result is beyond the text where the value does not end, and `start` where there is none.
    """
    if text[start : start + 1] not in ("{", "[", '"'):
        literal = re.compile(r"[^\s,\[\]{}\"]*").match(text, start)
        end = literal.end() if literal else start
        return end if end < len(text) else len(text) + 1
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth == 0:
            closed = token[0][0] != '"' or re.fullmatch(r'"[^"\\]*(?:\\.[^"\\]*)*"', token[0], re.DOTALL)
            return token.end() if closed else len(text) + 1
    return len(text) + 1
