"""Brings a database to the tables this version needs; one that is already there is adopted."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from resources.database import Database

VERSION_TABLE = "flexy_alembic_version"
"""Not Alembic's usual name: a FlexyFace database may have that one for itself."""


def migrate(database: Database) -> None:
    """Run every migration the database has not had, in one transaction; nothing to do costs one query."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with database.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
