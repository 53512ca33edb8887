"""FlexyFace's CSV, as `psql`'s COPY (…) TO STDOUT WITH CSV HEADER writes it."""

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from sqlalchemy import Connection, Select, select

from flexy_assets.storage.makers import list_beside
from flexy_assets.storage.scores import metric_value, score_value
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.files import describe_os_error, replacing

CSV_COLUMNS = ("steps", "guidance", *METRIC_COLUMNS, "elapsed_ms", "seed")

_UNBOUNDED = {"inf": "Infinity", "-inf": "-Infinity"}


def export_csv(database: Database, path: Path, run_ids: Collection[UUID] = (), *, allow_empty: bool = True) -> int:
    """Write the images that have all four scores, of these sweeps or of all, by steps and guidance; return how many.

    After FlexyFace's columns come those of Flexy's scores that are kept beside one.
    The file is written whole or not at all. On Postgres the server writes it, so that the rows and every digit are
    those of its COPY. Raises `FlexyError` where it cannot be written, `BadInputError` where no
    row is there and `allow_empty` is false.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file, database.begin(reading=True) as connection:
            is_postgres = connection.dialect.name == "postgresql"
            rows = (_copy_from_postgres if is_postgres else _write_rows)(connection, file, _query(connection, run_ids))
            if not rows and not allow_empty:
                raise BadInputError("nothing to export: no image has every score: run flexy backfill, see flexy status")
            return rows
    except OSError as error:
        raise FlexyError(f"cannot write {path}: {describe_os_error(error)}") from error


def _query(connection: Connection, run_ids: Collection[UUID]) -> Select[Any]:
    images = bench_run_results.c
    statement = select(*(images[name] for name in CSV_COLUMNS), *map(metric_value, list_beside(connection)))
    statement = statement.where(*(score_value(name).is_not(None) for name in METRIC_COLUMNS))
    if run_ids:
        statement = statement.where(images.run_id.in_(list(run_ids)))
    # Nothing more: among equals stands whatever order the server finds, in psql and here.
    return statement.order_by(images.steps, images.guidance)


def _copy_from_postgres(connection: Connection, file: BinaryIO, query: Select[Any]) -> int:
    text = query.compile(connection, compile_kwargs={"literal_binds": True})
    cursor: Any = connection.connection.cursor()
    cursor.copy_expert(f"COPY ({text}) TO STDOUT WITH CSV HEADER", file)
    return int(cursor.rowcount)


def _write_rows(connection: Connection, file: BinaryIO, query: Select[Any]) -> int:
    """SQLite's rows in the same form; it puts NULL first where Postgres puts it last."""
    images = bench_run_results.c
    last = query.order_by(None).order_by(images.steps.nulls_last(), images.guidance.nulls_last(), images.id)
    lines = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer, count = csv.writer(lines, lineterminator="\n"), 0
    writer.writerow(query.selected_columns.keys())
    for row in connection.execute(last):
        writer.writerow(map(_field, row))
        count += 1
    lines.detach()
    return count


def _field(value: Any) -> str:
    """Empty for NULL; the shortest text that reads back as the same number, without a trailing .0."""
    if value is None:
        return ""
    if isinstance(value, float):
        # A table that was there before may hold what our scorers never write.
        return _UNBOUNDED.get(repr(value)) or repr(value).removesuffix(".0")
    return str(value)
