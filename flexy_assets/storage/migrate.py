"""Migrates a database to the tables of this version; an existing FlexyFace database is adopted."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from flexy_assets.storage.table_forms import check_new_tables, check_tables_are_meant, check_writable
from flexy_assets.storage.tables import VERSION_TABLE, bench_run_results, bench_runs, metadata
from resources.database import Database
from resources.errors import BadInputError

if TYPE_CHECKING:
    from alembic.config import Config

_FLEXYFACE_TABLES = {bench_runs.name: ("SELECT",), bench_run_results.name: ("SELECT", "UPDATE")}
_OWN_TABLES = {name: ("SELECT", "INSERT", "UPDATE") for name in metadata.tables if name not in _FLEXYFACE_TABLES}

REQUIRED_RIGHTS = {VERSION_TABLE: ("SELECT",)} | _FLEXYFACE_TABLES | _OWN_TABLES
"""The rights on each table that adoption and scoring need."""

MISSING_RIGHTS = ("42501", "3F000")  # Postgres' codes: a statement is not granted, a user may use no schema

SET_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s'"
"""Other clients use the table: a longer wait, with our own locks held, would block them."""

_alembic = Lock()  # Alembic keeps the migration under way in module globals.


def migrate(database: Database) -> None:
    """Run every pending migration in one transaction; with none pending it costs a few queries.

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
        check_writable(connection)
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

    check_tables_are_meant(connection)
    versions, version = ScriptDirectory.from_config(_config()), _version(connection)
    if version == versions.get_current_head():
        return
    if connection.dialect.name == "postgresql":
        # Two processes that meet an empty database would both create its tables.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('flexy migrations'))")
        connection.exec_driver_sql(SET_LOCK_TIMEOUT)
    if version and version not in {each.revision for each in versions.walk_revisions()}:
        raise BadInputError(f"a newer Flexy has brought this database to version {version}: update this one")
    check_new_tables(connection)
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
