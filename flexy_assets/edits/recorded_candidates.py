"""Reads recorded candidates: the JSON lines in which qwen3-score stores every candidate."""

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
    **{"line": pl.Int64(), "id": pl.String(), "phase": pl.String(), "seed": pl.Int64()},
    **dict.fromkeys(("pf", "cons", "lpips", "recorded"), pl.Float64()),
}
"""`pf`, `cons` and `lpips` are the file's `clip_prompt_following`, `clip_consistency` and `lpips`, in its units;
`recorded` is its `potential`, null where it has none."""


def read_recorded_candidates(path: Path) -> tuple[pl.DataFrame, list[SkippedLine]]:
    """Return the candidates in a file, in order (`RECORDED_CANDIDATES_SCHEMA`), and the skipped lines.

    A line is skipped if `id`, `phase`, `seed` or a score is missing or of the wrong type, if a score is not finite,
    or if an earlier candidate has the same id, phase and seed. `potential` is optional. Other keys and blank lines
    are ignored. Raises `BadInputError` for an unreadable or empty file.
    """
    candidates: dict[tuple[str, str, int], dict[str, Any]] = {}
    skipped = []
    for number, entry in read_json_lines(path):
        try:
            candidate = _candidate(number, entry)
            key = candidate["id"], candidate["phase"], candidate["seed"]
            if first := candidates.get(key):
                raise BadLineError(f"duplicate of line {first['line']}: id {key[0]!r}, {key[1]}, seed {key[2]}")
            candidates[key] = candidate
        except BadLineError as error:
            skipped.append(SkippedLine(number, str(error)))
    if not candidates and not skipped:
        raise BadInputError(f"no candidates in {path}: must have one JSON object a line, as qwen3-score records them")
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
