"""An empty database for a benchmark: on the Postgres that FLEXY_DATABASE_URL names, else in SQLite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa

from resources.database import Database


@contextmanager
def empty(home: Path) -> Iterator[Database]:
    """A database without a table, gone afterwards; the user's own is not touched."""
    url = os.environ.get("FLEXY_DATABASE_URL", "")
    if not url.startswith("postgresql"):
        yield Database(f"sqlite:///{home / 'flexy.sqlite'}")
        return
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    name = f"flexy_benchmark_{uuid4().hex[:8]}"
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    database = Database(sa.make_url(url).set(database=name).render_as_string(hide_password=False))
    try:
        yield database
    finally:
        database.engine.dispose()
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
