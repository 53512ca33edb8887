"""Brings a database to the tables this version needs; one that is already there is adopted."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from alembic import command
from alembic.config import Config

from resources.database import Database

VERSION_TABLE = "flexy_alembic_version"
"""Not Alembic's usual name: a FlexyFace database may have that one for itself."""

_alembic = Lock()  # Alembic keeps the migration under way in module globals.


def migrate(database: Database) -> None:
    """Run every migration the database has not had, in one transaction; nothing to do costs one query."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with _alembic, database.begin() as connection:
        if connection.dialect.name == "postgresql":
            # Two processes that meet an empty database would both create its tables.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('flexy migrations'))")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
