"""FlexyFace's own columns: what its tables ask of the rows that Flexy adds, and what its pages read of them."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import (
    TIMESTAMP,
    Boolean,
    Column,
    Connection,
    Integer,
    String,
    Table,
    Text,
    and_,
    case,
    func,
    select,
    update,
)

from flexy_assets.storage.sql import utc_now
from flexy_assets.storage.tables import bench_run_results, bench_runs
from resources.errors import BadInputError


def _extended(table: Table, *columns: Column[Any]) -> Table:
    ours = (Column(each.name, each.type, primary_key=each.primary_key) for each in table.columns)
    return Table(table.name, sa.MetaData(), *ours, *columns)


RUNS = _extended(
    bench_runs,
    Column("prompt", Text),
    Column("prompt_length", Integer),
    Column("status", String(20)),
    Column("current_engine", String(50)),
    Column("resolution", Integer),
    Column("tf32_enabled", Boolean),
)
RESULTS = _extended(
    bench_run_results,
    Column("metrics_status", String(20)),
    Column("metrics_updated_at", TIMESTAMP),
)
"""The two tables with those of FlexyFace's columns that Flexy fills; a table of ours has none of them."""

STATUS_METRICS = ("clip_score", "aesthetic_score")
"""The scores that FlexyFace's `metrics_status` is about."""

_existing: WeakKeyDictionary[Any, dict[str, dict[str, Any]]] = WeakKeyDictionary()


def existing_columns(connection: Connection, table: Table) -> dict[str, Any]:
    """Return the columns of the table as it is in the database, by name; read once from each database."""
    tables = _existing.setdefault(connection.engine.pool, {})
    if table.name not in tables:
        tables[table.name] = {each["name"]: each for each in sa.inspect(connection).get_columns(table.name)}
    return tables[table.name]


def _needs_value(column: Mapping[str, Any]) -> bool:
    given = column.get("default") is not None or column.get("identity") or column.get("computed")
    return not column["nullable"] and not given


def check_required_columns(connection: Connection) -> None:
    """Raise `BadInputError` naming a column that must have a value in a new row and that Flexy has none for."""
    for table in (RUNS, RESULTS):
        columns = existing_columns(connection, table)
        for name, column in columns.items():
            if name not in table.c and _needs_value(column):
                raise BadInputError(
                    f"the column {table.name}.{name} must have a value, and Flexy knows none for it: give it a default:"
                    f" ALTER TABLE {table.name} ALTER COLUMN {name} SET DEFAULT …"
                )


def fit_row(connection: Connection, table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a row's values that the database has a column for; guidance 0 where it must not be NULL."""
    columns = existing_columns(connection, table)
    row = {name: value for name, value in row.items() if name in columns}
    if "guidance" in row and row["guidance"] is None and _needs_value(columns["guidance"]):
        row["guidance"] = 0.0
    return row


def describe_run(engine: str, target: int | None, plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values of FlexyFace's columns of `bench_runs`: its `prompt` of a sweep is a title."""
    title = f"Images of {engine}, made one by one"
    if plan:
        title = f"Parameter sweep: {target} images"
        for name, number in (("steps", int), ("guidance", float)):
            if bounds := plan.get(name):
                title += f", {name} {number(bounds['low']), number(bounds['high'])}"
    return {
        "prompt": title,
        "prompt_length": len(title),
        "status": "queued" if plan else "done",
        "current_engine": engine,
        "resolution": plan.get("width") if plan else None,
    }


def record_run_status(connection: Connection, run_id: UUID) -> None:
    """Set FlexyFace's `status` of a sweep, where there is one: done once it has its images, running before."""
    if "status" in existing_columns(connection, RUNS):
        images = select(func.count()).where(RESULTS.c.run_id == RUNS.c.id).scalar_subquery()
        status = case((images >= func.coalesce(RUNS.c.target, 0), "done"), else_="running")
        connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(status=status))


def scored_status(connection: Connection, metric: str) -> dict[str, Any]:
    """Return what FlexyFace's status columns become in a row that gets a value of `metric`; empty without them."""
    if metric not in STATUS_METRICS or "metrics_status" not in existing_columns(connection, RESULTS):
        return {}
    complete = and_(*(RESULTS.c[name].is_not(None) for name in STATUS_METRICS if name != metric))
    status = case((complete, "complete"), else_="pending")
    return {"metrics_status": status, "metrics_updated_at": utc_now()}


def record_failed_status(connection: Connection, metric: str, image_ids: Sequence[UUID]) -> None:
    """Set FlexyFace's status of images that got no value of `metric` to error, where it has one."""
    if image_ids and scored_status(connection, metric):
        statement = update(RESULTS).where(RESULTS.c.id.in_(image_ids), RESULTS.c[metric].is_(None))
        connection.execute(statement.values(metrics_status="error", metrics_updated_at=utc_now()))
