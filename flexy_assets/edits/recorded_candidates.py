"""Reads recorded candidates: the JSON lines in which qwen3-score keeps every try."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import polars as pl

from resources.errors import BadInputError
from resources.json_lines import (
    BadLineError,
    SkippedLine,
    float_field,
    identifier_field,
    integer_field,
    read_json_lines,
    text_field,
)

RECORDED_CANDIDATES_SCHEMA: Final[dict[str, pl.DataType]] = {
    "line": pl.Int64(),
    "id": pl.String(),
    "phase": pl.String(),
    "seed": pl.Int64(),
    "pf": pl.Float64(),
    "cons": pl.Float64(),
    "lpips": pl.Float64(),
    "recorded": pl.Float64(),
}
"""`pf`, `cons` and `lpips` are the file's `clip_prompt_following`, `clip_consistency` and `lpips`, in its units;
`recorded` is its `potential`, null where it has none."""


def read_recorded_candidates(path: Path) -> tuple[pl.DataFrame, list[SkippedLine]]:
    """The candidates in a file, in order (`CANDIDATES`), and the lines that were left out.

    A line is left out where `id`, `phase`, `seed` or a score is missing or of the wrong type, where a score is not
    finite, and where a candidate of the same id, phase and seed came before. A `potential` may be missing. Other
    keys and blank lines are passed over. Raises `BadInputError` for a file that cannot be read or holds nothing.
    """
    candidates: dict[tuple[str, str, int], dict[str, Any]] = {}
    skipped = []
    for number, entry in read_json_lines(path):
        try:
            candidate = _candidate(number, entry)
            key = candidate["id"], candidate["phase"], candidate["seed"]
            if first := candidates.get(key):
                raise BadLineError(f"id {key[0]!r}, {key[1]} and seed {key[2]} are those of line {first['line']}")
            candidates[key] = candidate
        except BadLineError as error:
            skipped.append(SkippedLine(number, str(error)))
    if not candidates and not skipped:
        raise BadInputError(f"{path} has no candidate in it: write one a line, as qwen3-score records them")
    return pl.DataFrame(list(candidates.values()), schema=RECORDED_CANDIDATES_SCHEMA, orient="row"), skipped


def _candidate(number: int, entry: dict[str, Any] | BadLineError) -> dict[str, Any]:
    if isinstance(entry, BadLineError):
        raise entry
    return {
        "line": number,
        "id": identifier_field(entry),
        "phase": text_field(entry, "phase", 200),
        "seed": integer_field(entry, "seed"),
        "pf": float_field(entry, "clip_prompt_following"),
        "cons": float_field(entry, "clip_consistency"),
        "lpips": float_field(entry, "lpips"),
        "recorded": None if entry.get("potential") is None else float_field(entry, "potential", most=1e15),
    }
