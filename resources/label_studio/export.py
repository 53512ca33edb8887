"""Reads tasks as Label Studio gives them: from an export file, or from its API's list."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from resources.errors import BadInputError
from resources.json_lines import BadLineError, identifier_field, integer_field, parse_json, text_field
from resources.prompts import MAX_PROMPT

MAX_EXPORT_BYTES = 1_000_000_000
"""A larger export is not read: it is held in memory whole."""

MAX_ADDRESS_CHARACTERS = 8_000
"""Characters; signed addresses have about 1,500."""

# What signs an address for a while: S3, Google, CloudFront, Azure, and older ways of each.
_SIGNATURE = re.compile(
    r"(x-(amz|goog)-.*|signature|sig|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|s[etvpr]|token)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class ReviewVerdict:
    """What a person chose in one annotation, word for word: `No Issues`, say, or several.

    `annotation` is its id, `at` when it was last changed, as Label Studio writes it, `by` the annotator's id or
    e-mail address; None where they are not given.
    """

    choices: tuple[str, ...]
    annotation: int | None = None
    at: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class BrushStroke:
    """One region that was painted: see `masks.decode_rle`. `on` names the picture's tag in the labelling form."""

    rle: bytes = field(repr=False)
    width: int
    height: int
    on: str = ""


@dataclass(frozen=True)
class LabelTask:
    """A scene, and whose face is to be put right in it.

    `id` is the task's name, `data.id`; `task` and `project` are Label Studio's own numbers, None where it gave none.
    Pictures are addresses, paths on the Label Studio server, or files relative to the export; `mask_image` and
    `final_image` may be "". `strokes` is the mask as an annotator painted it (the last who did), which is then newer
    than `mask_image`; together they are one mask. There is always one of the two.
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
        """SHA-256 of all that the task asks for: another one is a changed task.

        Verdicts are not in it, nor what signs an address for a while.
        """
        pictures = [
            strip_signature(url) for url in (self.init_image, self.character_image, self.mask_image, self.final_image)
        ]
        strokes = [[hashlib.sha256(s.rle).hexdigest(), s.width, s.height, s.on] for s in self.strokes]
        asked = [self.id, pictures, self.character_id, self.character_name, self.prompt, strokes]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@dataclass(frozen=True)
class TaskProblem:
    """What is wrong with an entry of the list, counted from 1; `entry` 0 is the file itself.

    `id` is the task's name where it has one. Where it is not `left_out`, the task stands without what is wrong.
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
    """The tasks of a Label Studio export (JSON), in order, and what is wrong with the others.

    Of a file that is cut short or broken, the whole tasks before that place are kept. Raises `BadInputError` for one
    that cannot be read, is no list of tasks, or has nothing in it.
    """
    try:
        if path.stat().st_size > MAX_EXPORT_BYTES:
            raise BadInputError(f"{path} is larger than {MAX_EXPORT_BYTES} bytes: export fewer tasks at a time")
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}: name a Label Studio export") from None
    try:
        whole = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(content) - 3:
            raise BadInputError(f"{path} is not UTF-8 text from byte {error.start} on: export it anew") from None
        whole = content[: error.start].decode("utf-8-sig")  # cut short within a letter
    if not whole.lstrip().startswith("["):
        raise BadInputError(f"{path} is not a list of tasks: export it from Label Studio as JSON")
    tasks, problems = parse_tasks(_entries(whole))
    if not tasks and not problems:
        raise BadInputError(f"{path} has no task in it: export it from Label Studio as JSON")
    return tasks, problems


def parse_tasks(entries: Iterable[Any]) -> tuple[list[LabelTask], list[TaskProblem]]:
    """Entries of a task list, as JSON objects, as tasks, in order, and what is wrong with the others.

    An entry is left out where something is missing, empty or of the wrong type, and where its `data.id` was seen
    before: people name a task by it, so there is one of each, the first.
    """
    tasks: dict[str, LabelTask] = {}
    places: dict[str, int] = {}
    problems = []
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, _FileError):
            problems.append(TaskProblem(0, None, str(entry)))
            continue
        name = None
        try:
            if isinstance(entry, BadLineError):
                raise entry
            data = _data(entry)
            name = identifier_field(data)
            if name in tasks:
                raise BadLineError(f"it is there before, as entry {places[name]}: give it an id of its own")
            strokes, verdicts, unread = _annotations(entry)
            tasks[name] = _task(name, entry, data, strokes, verdicts)
            places[name] = number
            problems += [TaskProblem(number, name, reason, left_out=False) for reason in unread]
        except BadLineError as error:
            problems.append(TaskProblem(number, name, str(error)))
    return list(tasks.values()), problems


def _data(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise BadLineError("it is not a JSON object")
    data = entry.get("data")
    if not isinstance(data, dict):
        raise BadLineError("it has no data: export as JSON, not JSON-MIN")
    return data


def _task(
    name: str,
    entry: dict[str, Any],
    data: dict[str, Any],
    strokes: tuple[BrushStroke, ...],
    verdicts: tuple[ReviewVerdict, ...],
) -> LabelTask:
    def optional(key: str, most: int) -> str:
        return text_field(data, key, most) if data.get(key) not in (None, "") else ""

    mask = optional("mask_image_url", MAX_ADDRESS_CHARACTERS)
    if not mask and not strokes:
        raise BadLineError("it has neither mask_image_url nor a painted mask")
    return LabelTask(
        id=name,
        task=_number(entry, "id"),
        project=_number(entry, "project"),
        init_image=text_field(data, "init_image_url", MAX_ADDRESS_CHARACTERS),
        character_image=text_field(data, "character_image_url", MAX_ADDRESS_CHARACTERS),
        mask_image=mask,
        final_image=optional("image_url", MAX_ADDRESS_CHARACTERS),
        character_id=identifier_field(data, "character_id") if data.get("character_id") not in (None, "") else "",
        character_name=optional("character_name", 200),
        prompt=optional("prompt", MAX_PROMPT),
        strokes=strokes,
        verdicts=verdicts,
    )


def _number(entry: dict[str, Any], key: str) -> int | None:
    return integer_field(entry, key) if entry.get(key) is not None else None


def _annotations(entry: dict[str, Any]) -> tuple[tuple[BrushStroke, ...], tuple[ReviewVerdict, ...], list[str]]:
    """What was painted and chosen in the annotations that were not cancelled, and why others cannot be read."""
    painted: list[tuple[str, tuple[BrushStroke, ...]]] = []
    verdicts, unread = [], []
    found = entry.get("annotations")
    if found is not None and not isinstance(found, list):
        return (), (), ["its annotations are not a list, and are passed over"]
    for number, annotation in enumerate(found or [], 1):
        try:
            if not isinstance(annotation, dict):
                raise BadLineError("it is not a JSON object")
            if annotation.get("was_cancelled"):
                continue
            at = next((str(annotation[key]) for key in ("updated_at", "created_at") if annotation.get(key)), None)
            results = annotation.get("result")
            if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
                raise BadLineError("its result is not a list of JSON objects")
            choices = [choice for result in results if result.get("type") == "choices" for choice in _choices(result)]
            strokes = tuple(_stroke(result) for result in results if result.get("type") in ("brushlabels", "brush"))
            if choices:
                by = _annotator(annotation.get("completed_by"))
                verdicts.append(ReviewVerdict(tuple(choices), _number(annotation, "id"), at and at[:40], by))
            if strokes:
                painted.append((at or "", strokes))
        except BadLineError as error:
            unread.append(f"annotation {number} is passed over: {error}")
    # Of equal times, the later in the list.
    last = max(enumerate(painted), key=lambda each: (each[1][0], each[0]), default=None)
    return last[1][1] if last else (), tuple(verdicts), unread


def _choices(result: dict[str, Any]) -> list[str]:
    match result.get("value"):
        case {"choices": [*choices]}:
            return [text_field({"choice": choice}, "choice", 200) for choice in choices]
    raise BadLineError("its choices are not a list")


def _annotator(who: Any) -> str | None:
    match who:
        case {"id": int(number)} | int(number):
            return str(number) if abs(number) < 2**63 else None
        case {"email": str(address)} | str(address):
            return address[:200]
    return None


def _stroke(result: dict[str, Any]) -> BrushStroke:
    value = result.get("value")
    if not isinstance(value, dict) or value.get("format") != "rle":
        raise BadLineError("what is painted is not in the format rle")
    if result.get("image_rotation"):
        raise BadLineError("it is painted on a picture turned round: turn it back and paint anew")
    rle = value.get("rle")
    if not isinstance(rle, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in rle):
        raise BadLineError("what is painted is no list of bytes")
    width, height = (integer_field(result, key) for key in ("original_width", "original_height"))
    on = result.get("to_name")
    return BrushStroke(bytes(rle), width, height, on[:200] if isinstance(on, str) else "")


def strip_signature(url: str) -> str:
    """An address without what signs it, so that it is the same in the next export."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    kept = [each for each in parts.query.split("&") if each and not _SIGNATURE.fullmatch(each.partition("=")[0])]
    return parts._replace(query="&".join(kept)).geturl()


class _FileError(Exception):
    """Why the rest of a file cannot be read."""


def _entries(whole: str) -> Iterator[Any]:
    """The entries of a JSON list, each read by itself: an error stands in the place of one that cannot be."""

    def byte(at: int) -> int:
        return len(whole[:at].encode())

    def rest(at: int) -> _FileError:
        if at >= len(whole):
            return _FileError(f"the file is cut short at byte {byte(at)}: the whole tasks before are kept")
        return _FileError(f"the file is no JSON from byte {byte(at)} on: the tasks before are kept")

    def skip(at: int) -> int:
        found = _SPACE.match(whole, at)
        return found.end() if found else at

    at = skip(whole.index("[") + 1)
    if whole[at : at + 1] == "]":
        return
    while True:
        start, at = at, _end(whole, at)
        if at > len(whole):
            # Where it begins would not help: what follows may be missing.
            yield rest(len(whole))
            return
        if at == start:
            yield rest(at)
            return
        try:
            yield parse_json(whole[start:at])
        except BadLineError as error:
            yield error
        at = skip(at)
        if whole[at : at + 1] == "]":
            if skip(at + 1) < len(whole):
                yield rest(skip(at + 1))
            return
        if whole[at : at + 1] != ",":
            yield rest(at)
            return
        at = skip(at + 1)


def _end(whole: str, at: int) -> int:
    """Where the JSON value that begins at `at` ends, however deep it is; beyond the text where it does not.

    The same as `at` where there is none.
    """
    if whole[at : at + 1] not in ("{", "[", '"'):
        found = re.compile(r"[^\s,\[\]{}\"]*").match(whole, at)
        end = found.end() if found else at
        return end if end < len(whole) else len(whole) + 1
    depth = 0
    for token in _TOKEN.finditer(whole, at):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth == 0:
            closed = token[0][0] != '"' or re.fullmatch(r'"[^"\\]*(?:\\.[^"\\]*)*"', token[0], re.DOTALL)
            return token.end() if closed else len(whole) + 1
    return len(whole) + 1
