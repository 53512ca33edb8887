"""Brings a database to the tables this version needs; one that is already there is adopted."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from flexy_assets.storage.tables import bench_run_results, bench_runs, metadata
from resources.database import Database
from resources.errors import BadInputError

VERSION_TABLE = "flexy_alembic_version"
"""Not Alembic's usual name: a FlexyFace database may have that one for itself."""

NEEDED = ("id", "engine", "steps", "guidance", "seed", "image_path")
"""Without these a `bench_run_results` is not FlexyFace's; its other columns may be missing and are added."""

OURS_TO_FILL = {"batch": 20, "image_sha256": 64}
"""Columns that Flexy writes text to, and how many characters they must take."""

INSUFFICIENT_PRIVILEGE = "42501"
"""Postgres' code for a statement that is not granted."""

_alembic = Lock()  # Alembic keeps the migration under way in module globals.

_FAMILIES: dict[type, tuple[type, ...]] = {
    sa.Uuid: (sa.Uuid,),
    sa.String: (sa.String,),
    sa.Integer: (sa.Integer,),
    sa.Float: (sa.Numeric,),
    sa.TIMESTAMP: (sa.DateTime,),
}
"""Our columns' types, and the types of a column that is there that will do for them."""


def migrate(database: Database) -> None:
    """Run every migration the database has not had, in one transaction; nothing to do costs two queries.

    Raises `BadInputError` where a table is there that cannot be adopted, or where the statements are not
    granted: it then names them, for somebody who may. Nothing has been changed then.
    """
    with _alembic, database.begin() as connection:
        versions = ScriptDirectory.from_config(_config())
        if _version(connection) == versions.get_current_head():
            return
        if connection.dialect.name == "postgresql":
            # Two processes that meet an empty database would both create its tables.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('flexy migrations'))")
        for table in (bench_runs, bench_run_results):
            _check(connection, table)
        config = _config()
        config.attributes["connection"] = connection
        before = connection.begin_nested()
        try:
            command.upgrade(config, "head")
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) != INSUFFICIENT_PRIVILEGE:
                raise
            before.rollback()
            raise BadInputError(
                f"{database} does not grant what Flexy's columns and tables take"
                f" ({str(error.orig).splitlines()[0]}): have their owner run: {' '.join(_statements(connection))}"
            ) from None


def _config(**options: object) -> Config:
    config = Config(**options)  # type: ignore[arg-type]
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _version(connection: sa.Connection) -> str | None:
    """The last migration the database has had."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))


def _statements(connection: sa.Connection) -> Iterator[str]:
    """What the migrations would run, and the rights on what they make, each a statement in one line."""
    written = io.StringIO()
    config = _config(output_buffer=written)
    config.attributes["connection"] = connection
    command.upgrade(config, f"{_version(connection) or 'base'}:head", sql=True)
    lines = [line for line in written.getvalue().splitlines() if not line.lstrip().startswith("--")]
    for statement in "\n".join(lines).split(";"):
        if statement.strip():
            yield f"{' '.join(statement.split())};"
    user = connection.dialect.identifier_preparer.quote(connection.scalar(sa.text("SELECT current_user")) or "")
    ours = ", ".join(table.name for table in metadata.sorted_tables if table not in (bench_runs, bench_run_results))
    yield f"GRANT SELECT ON {VERSION_TABLE}, {bench_runs.name} TO {user};"
    yield f"GRANT SELECT, UPDATE ON {bench_run_results.name} TO {user};"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {ours} TO {user};"


def _check(connection: sa.Connection, table: sa.Table) -> None:
    """Raises `BadInputError` where a table of that name is there that ours cannot be."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(table.name):
        return
    there = {column["name"]: column["type"] for column in inspector.get_columns(table.name)}
    needed = NEEDED if table is bench_run_results else ("id",)
    lacking = [name for name in needed if name not in there]
    if lacking:
        raise BadInputError(
            f"the table {table.name} has no column {', '.join(lacking)}: it is not FlexyFace's: name the database"
            " that has FlexyFace's table, or an empty one, in FLEXY_DATABASE_URL"
        )
    unique = [index for index in inspector.get_indexes(table.name) if index["unique"]]
    keys: list[Sequence[str | None]] = [inspector.get_pk_constraint(table.name)["constrained_columns"]]
    keys += [index["column_names"] for index in unique]
    if ["id"] not in keys:
        raise BadInputError(
            f"the ids of the table {table.name} are not unique by its definition: make id its primary key"
        )
    if connection.dialect.name == "sqlite":  # whose columns take any type
        return
    for column in table.columns:
        if column.name not in there:
            continue
        found = there[column.name]
        wanted = next(kinds for ours, kinds in _FAMILIES.items() if isinstance(column.type, ours))
        too_narrow = (getattr(found, "length", None) or 64) < OURS_TO_FILL.get(column.name, 0)
        if not isinstance(found, wanted) or too_narrow:
            raise BadInputError(
                f"the column {table.name}.{column.name} is {found}, where Flexy keeps {column.type}: rename it, or"
                " name another database in FLEXY_DATABASE_URL"
            )
