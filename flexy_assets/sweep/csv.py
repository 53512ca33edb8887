"""FlexyFace's CSV, in the form `psql`'s COPY … WITH CSV HEADER gives it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flexy_assets.storage.queries import CSV_COLUMNS
from resources.errors import FlexyError
from resources.images import describe, write_atomically

_UNBOUNDED = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def write(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write `CSV_COLUMNS` as header and the rows beneath, whole or not at all.

    Raises `FlexyError` where the file cannot be written.
    """
    lines = [",".join(CSV_COLUMNS), *(",".join(map(_field, row)) for row in rows)]
    try:
        write_atomically(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise FlexyError(f"cannot write {path}: {describe(error)}") from error


def _field(value: Any) -> str:
    """Empty for NULL; the shortest text that reads back as the same number, without a trailing .0."""
    if value is None:
        return ""
    if isinstance(value, float):
        # An adopted table may hold what our scorers never write.
        return _UNBOUNDED.get(repr(value)) or repr(value).removesuffix(".0")
    return str(value)
