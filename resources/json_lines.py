"""Reads JSON that others wrote: a bad line is reported with its reason, and the next one is read."""

import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.errors import BadInputError

MAX_LINE_BYTES = 1_000_000
"""The largest line that is read; an edit or a candidate has less than a hundredth of it."""


@dataclass(frozen=True)
class SkippedLine:
    """A line, counted from 1, that was skipped, and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class BadLineError(ValueError):
    """The reason why a line cannot be used."""


def parse_json(text: str, unique_names: bool = False) -> Any:
    """Return the JSON document in `text`.

    Raises `BadLineError`, a `ValueError`, for what is not JSON, NaN and infinities included, and with `unique_names`
    for an object that has a name twice.
    """
    try:
        return json.loads(
            text, parse_constant=_reject_constant, object_pairs_hook=_reject_repeated_names if unique_names else None
        )
    except RecursionError:
        raise BadLineError("it is nested too deeply") from None
    except ValueError:
        raise BadLineError("it is not JSON") from None


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _reject_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name occurs twice")
    return names


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadLineError]]:
    """Yield number and object of each line of a UTF-8 file that is not blank; an error where it is not an object.

    Raises `BadInputError` naming a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                complete = len(line) <= MAX_LINE_BYTES
                while not line.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
                    line = rest
                if not complete:
                    yield number, BadLineError(f"it is longer than {MAX_LINE_BYTES} bytes")
                elif line.strip(b" \t\r\n\xef\xbb\xbf"):
                    yield number, _parse_object(line)
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}: name a file of JSON lines") from None


def _parse_object(line: bytes) -> dict[str, Any] | BadLineError:
    try:
        # Not strict: a NaN in a field that is not read is no reason to skip the line.
        document = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadLineError("it is not UTF-8 text")
    except (ValueError, RecursionError):
        return BadLineError("it is not JSON")
    return document if isinstance(document, dict) else BadLineError("it is not a JSON object")


def text_field(entry: dict[str, Any], key: str, most: int) -> str:
    """Return a text of 1 to `most` characters, stripped. Raises `BadLineError`, as all functions for fields do."""
    value = _require_field(entry, key)
    if not isinstance(value, str):
        raise BadLineError(f"{key} is not text")
    value = value.strip()
    if not value:
        raise BadLineError(f"{key} is empty")
    if len(value) > most:
        raise BadLineError(f"{key} is over {most} characters")
    # Half a surrogate pair is JSON but not text; control characters must not reach a database or a terminal.
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\r\n" for c in value):
        raise BadLineError(f"{key} has control characters")
    return value


def identifier_field(entry: dict[str, Any], key: str = "id") -> str:
    """Return a text as `text_field` does; an integer is converted."""
    value = _require_field(entry, key)
    if isinstance(value, int) and not isinstance(value, bool):
        entry = {key: str(value)}
    return text_field(entry, key, most=200)


def integer_field(entry: dict[str, Any], key: str) -> int:
    """Return an integer from 0 to 2⁶³ − 1."""
    value = _require_field(entry, key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise BadLineError(f"{key} is not an integer from 0 to 2⁶³ − 1")
    return value


def float_field(entry: dict[str, Any], key: str, most: float = 1e6) -> float:
    """Return a number whose magnitude is at most `most`."""
    value = _require_field(entry, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLineError(f"{key} is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadLineError(f"{key} is not finite")
    if abs(value) > most:
        raise BadLineError(f"{key} is not from -{most:g} to {most:g}")
    return float(value)


def _require_field(entry: dict[str, Any], key: str) -> Any:
    if entry.get(key) is None:
        raise BadLineError(f"it has no {key}")
    return entry[key]
