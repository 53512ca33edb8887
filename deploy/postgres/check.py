"""Fail with one line if Dagster and the results would share a database: their tables would collide."""

import os
import sys

from sqlalchemy import text

from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.settings import Settings


def check() -> None:
    """Raise `BadInputError` unless Dagster's database is a reachable Postgres and not that of the results."""
    dagster = _identity("FLEXY_DAGSTER_URL", os.environ.get("FLEXY_DAGSTER_URL") or "")
    if dagster is None:
        raise BadInputError(
            "invalid FLEXY_DAGSTER_URL: must be a Postgres database: write postgresql://USER:PASSWORD@HOST/NAME"
        )
    if dagster == _identity("FLEXY_DATABASE_URL", Settings.read().database_url):
        raise BadInputError(
            "FLEXY_DAGSTER_URL and FLEXY_DATABASE_URL name the same database: create one for Dagster alone"
        )


def _identity(variable: str, url: str) -> object | None:
    """Return a Postgres database by its server's start time and its id there, as a host has many spellings."""
    database = Database(url)
    try:
        if database.url.get_backend_name() != "postgresql":
            return None
        with database.begin(reading=True) as connection:
            return connection.execute(
                text("SELECT pg_postmaster_start_time(), oid FROM pg_database WHERE datname = current_database()")
            ).one()
    except FlexyError as error:
        raise BadInputError(str(error).replace("FLEXY_DATABASE_URL", variable)) from None


if __name__ == "__main__":
    try:
        check()
    except FlexyError as error:
        print(f"flexy: {error}", file=sys.stderr)
        sys.exit(error.status)
