"""Locks that keep two workers from doing the same work at the same time."""

import fcntl
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, text

from resources.database import Database

_KEEPALIVE_SETTINGS = {"idle": 60, "interval": 10, "count": 6}
"""With these the server notices within two minutes that a worker's machine has gone."""


class ImageClaims:
    """One worker's claims, each an advisory lock of its connection: they end with the worker, however it ends.

    They lock nobody out of the rows themselves. On SQLite every claim is granted: there the pool `gpu` keeps
    workers apart, and a file on one machine has no others.
    """

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def take(self, what: str, image_ids: Collection[UUID]) -> set[UUID]:
        """Claim images for `what`, a metric or an embedding; return those that no other worker holds."""
        return self._locking("pg_try_advisory_lock", what, image_ids)

    def release(self, what: str, image_ids: Collection[UUID]) -> None:
        """Release images that were claimed for `what`."""
        self._locking("pg_advisory_unlock", what, image_ids)

    def _locking(self, function: str, what: str, image_ids: Collection[UUID]) -> set[UUID]:
        if self._connection is None or not image_ids:
            return set(image_ids)
        keys = text(
            "SELECT image_id FROM unnest(CAST(:ids AS uuid[])) AS image_id"
            f" WHERE {function}(hashtextextended('flexy/' || :what || '/' || image_id, 0))"
        )
        locked = self._connection.scalars(keys, {"ids": [str(i) for i in image_ids], "what": what})
        return {UUID(str(image_id)) for image_id in locked}


@contextmanager
def open_claims(database: Database) -> Iterator[ImageClaims]:
    """Yield claims that end with the block. Raises `FlexyError` where the database can no longer be reached."""
    is_postgres = database.url.get_backend_name() == "postgresql"
    with _lock_connection(database) if is_postgres else nullcontext() as connection:
        yield ImageClaims(connection)


@contextmanager
def exclusive_lock(database: Database, what: str) -> Iterator[None]:
    """Hold the lock `what` of this database during the block; others wait, and a killed process releases it."""
    if database.url.get_backend_name() == "postgresql":
        with _lock_connection(database) as connection:
            connection.execute(text("SELECT pg_advisory_lock(hashtextextended('flexy/' || :what, 0))"), {"what": what})
            yield
        return
    with Path(f"{database.url.database}.{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _lock_connection(database: Database) -> Iterator[Connection]:
    """Yield a connection to Postgres whose advisory locks end with it."""
    with database.session() as connection:
        for name, value in _KEEPALIVE_SETTINGS.items():
            connection.exec_driver_sql(f"SET tcp_keepalives_{name} = {value}")
        yield connection
        # The server notices a moment later that a connection has ended: who comes next would find them taken.
        connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")
