"""Migrates a database to the tables of this version; an existing FlexyFace database is adopted."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import ReflectedIndex
from sqlalchemy.engine.reflection import ObjectKind
from sqlalchemy.exc import DBAPIError

from flexy_assets.storage.tables import bench_run_results, bench_runs, metadata
from resources.database import Database
from resources.errors import BadInputError

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "flexy_alembic_version"  # not Alembic's usual name, which a FlexyFace database may have for itself

REQUIRED_COLUMNS = ("id", "engine", "steps", "guidance", "seed", "image_path")
"""Without these a `bench_run_results` is not FlexyFace's; its other columns may be missing and are added."""

FILLABLE_COLUMNS = {"batch": 20, "image_sha256": 64}
"""Columns that Flexy writes text to, and how many characters they must take."""

_FLEXYFACE_TABLES = {bench_runs.name: ("SELECT",), bench_run_results.name: ("SELECT", "UPDATE")}
_OWN_TABLES = {name: ("SELECT", "INSERT", "UPDATE") for name in metadata.tables if name not in _FLEXYFACE_TABLES}

REQUIRED_RIGHTS = {VERSION_TABLE: ("SELECT",)} | _FLEXYFACE_TABLES | _OWN_TABLES
"""The rights on each table that adoption and scoring need."""

MISSING_RIGHTS = ("42501", "3F000")  # Postgres' codes: a statement is not granted, a user may use no schema

HIDDEN_ROWS = """SELECT quote_ident(nspname) FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
    WHERE relname = :table AND NOT has_schema_privilege(pg_namespace.oid, 'USAGE')"""
"""The schemas of a table that the user may not use."""

SET_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s'"
"""Other clients use the table: a longer wait, with our own locks held, would block them."""

_alembic = Lock()  # Alembic keeps the migration under way in module globals.

_TYPE_FAMILIES: dict[type, tuple[type, ...]] = {
    **{sa.Uuid: (sa.Uuid,), sa.Integer: (sa.Integer,), sa.Float: (sa.Numeric,), sa.TIMESTAMP: (sa.DateTime,)},
    sa.String: (sa.VARCHAR, sa.Text),  # not CHAR, whose blanks would be part of every name
}
"""Flexy's column types, and the types of existing columns that are compatible with them."""


def migrate(database: Database) -> None:
    """Run every pending migration in one transaction; with none pending it costs two queries.

    Raises `BadInputError` where a table is there that cannot be adopted, or where the statements are not
    granted: it names them for the owner of the tables. Nothing has been changed then.
    """
    with _alembic, database.begin() as connection:
        before = connection.begin_nested()
        try:
            _upgrade(connection)
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) not in MISSING_RIGHTS:
                raise
            before.rollback()
            raise _not_granted(database, connection, str(error.orig).splitlines()[0]) from None


def check_rights(database: Database) -> None:
    """Raises `BadInputError` where adopting and scoring the tables that are there would be refused."""
    with database.begin(reading=True) as connection:
        if connection.dialect.name != "postgresql":
            return
        may = sa.func.has_any_column_privilege
        needed = [(table, right) for table, rights in REQUIRED_RIGHTS.items() for right in rights]
        granted = connection.execute(sa.select(*(may(table, right) for table, right in needed))).one()
        lacking = [f"{right} on {table}" for (table, right), has in zip(needed, granted, strict=True) if not has]
        if lacking:
            raise _not_granted(database, connection, f"not {', '.join(lacking)}")


def _upgrade(connection: sa.Connection) -> None:
    # Imported here, because definitions that only load need none of it and it takes a while.
    from alembic import command
    from alembic.script import ScriptDirectory

    versions, version = ScriptDirectory.from_config(_config()), _version(connection)
    if version == versions.get_current_head():
        return
    if connection.dialect.name == "postgresql":
        # Two processes that meet an empty database would both create its tables.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('flexy migrations'))")
        connection.exec_driver_sql(SET_LOCK_TIMEOUT)
    if version and version not in {each.revision for each in versions.walk_revisions()}:
        raise BadInputError(f"a newer Flexy has brought this database to version {version}: update this one")
    for table in (bench_runs, bench_run_results):
        _check(connection, table)
    command.upgrade(_config(attributes={"connection": connection}), "head")


def _config(**options: Any) -> Config:
    from alembic.config import Config

    config = Config(**options)
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _version(connection: sa.Connection) -> str | None:
    """Return the last migration that the database has run."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))


def _not_granted(database: Database, connection: sa.Connection, cause: str) -> BadInputError:
    return BadInputError(
        f"{database} does not grant what Flexy's columns and tables take ({cause}):"
        f" have their owner run: {' '.join(_statements(connection))}"
    )


def _statements(connection: sa.Connection) -> Iterator[str]:
    """Return the statements that the user has no right to run, each in one line."""
    # As the server quotes it: a name may hold anything.
    user = connection.scalar(sa.text("SELECT quote_ident(current_user)"))
    hidden = connection.scalars(sa.text(HIDDEN_ROWS), {"table": bench_run_results.name}).all()
    if hidden:  # what it lacks is seen when it is
        yield f"GRANT USAGE ON SCHEMA {', '.join(hidden)} TO {user};"
        return
    path = connection.scalar(sa.text("SHOW search_path"))
    if path != '"$user", public':
        yield f"SET search_path TO {path};"
    unread = sa.text(f"SELECT NOT has_table_privilege(to_regclass('{VERSION_TABLE}'), 'SELECT')")
    if not connection.scalar(unread):  # else the tables are there
        yield from _migrations(connection)
    for table, rights in REQUIRED_RIGHTS.items():
        yield f"GRANT {', '.join(rights)} ON {table} TO {user};"


def _migrations(connection: sa.Connection) -> Iterator[str]:
    """Yield the statements that the migrations would run."""
    from alembic import command

    output = io.StringIO()
    config = _config(output_buffer=output, attributes={"connection": connection})
    command.upgrade(config, f"{_version(connection) or 'base'}:head", sql=True)
    lines = [line for line in output.getvalue().splitlines() if not line.lstrip().startswith("--")]
    for statement in "\n".join(lines).split(";"):
        if statement.strip():
            yield f"{' '.join(statement.split())};"


def _check(connection: sa.Connection, table: sa.Table) -> None:
    """Raises `BadInputError` where a table of that name is there that ours cannot be."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(table.name):
        return
    columns = inspector.get_multi_columns(filter_names=[table.name], kind=ObjectKind.TABLE).get((None, table.name))
    if columns is None:
        raise BadInputError(
            f"{table.name} is not a table but a view, or of another server: name the database that has FlexyFace's"
            " table itself in FLEXY_DATABASE_URL"
        )
    types = {column["name"]: column["type"] for column in columns}
    needed = REQUIRED_COLUMNS if table is bench_run_results else ("id",)
    if lacking := [name for name in needed if name not in types]:
        raise BadInputError(
            f"the table {table.name} has no column {', '.join(lacking)}: it is not FlexyFace's: name the database"
            " that has FlexyFace's table, or an empty one, in FLEXY_DATABASE_URL"
        )
    keys: list[Sequence[str | None]] = [inspector.get_pk_constraint(table.name)["constrained_columns"]]
    if "id" not in (column["name"] for column in columns if column["nullable"]):
        keys += [index["column_names"] for index in inspector.get_indexes(table.name) if _is_unique(index)]
    if ["id"] not in keys:
        raise BadInputError(
            f"the ids of the table {table.name} may repeat or be NULL by its definition: make id its primary key"
        )
    if connection.dialect.name == "sqlite":  # whose columns take any type
        return
    for column in table.columns:
        if column.name not in types:
            continue
        kind = types[column.name]
        compatible = next(kinds for ours, kinds in _TYPE_FAMILIES.items() if isinstance(column.type, ours))
        too_narrow = (getattr(kind, "length", None) or 64) < FILLABLE_COLUMNS.get(column.name, 0)
        if not isinstance(kind, compatible) or too_narrow:
            raise BadInputError(
                f"the column {table.name}.{column.name} is {getattr(kind, 'name', kind)}, where Flexy keeps"
                f" {column.type.compile(connection.dialect)}: give it that type, rename it, or name another database"
                " in FLEXY_DATABASE_URL"
            )


def _is_unique(index: ReflectedIndex) -> bool:
    """Return whether the index makes values unique in all rows, not only in those of its condition."""
    return index["unique"] and not any(option.endswith("_where") for option in index.get("dialect_options", {}))
