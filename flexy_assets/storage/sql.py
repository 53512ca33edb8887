"""SQL helpers: an upsert in each dialect, and the time as the tables hold it."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def utc_now() -> datetime:
    """Return the time in UTC, without a zone, as FlexyFace's TIMESTAMP columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


def upsert(connection: Connection, table: Table) -> Any:
    """Return an INSERT with ON CONFLICT, in the dialect of the connection."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table)
