"""The results database: SQLite in WAL mode by default, Postgres in production."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, NoSuchModuleError

from resources.errors import BadInputError, FlexyError

IDLE_SECONDS = 5
"""After this time an unused connection is checked before it is used."""

_FIX = "fix this and run again; completed work is kept"


class Database:
    """Connections to one database. Nothing is opened before the first `begin`.

    Raises `BadInputError` for an invalid URL and a database that cannot be reached, `FlexyError` for one that can no
    longer be reached; the messages hold the URL without its password.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._reached = False

    @cached_property
    def url(self) -> URL:
        try:
            url = make_url(self._url)
            # An unescaped @ in a password makes the rest of it part of the host.
            valid = "@" not in (url.host or "")
        except (ArgumentError, ValueError):
            valid = False
        if not valid:
            # The URL is not repeated, because it may hold a password.
            form = "postgresql://USER:PASSWORD@HOST/NAME (an @ in the password as %40) or sqlite:///FILE"
            raise BadInputError(f"invalid FLEXY_DATABASE_URL: write {form}")
        if (name := url.get_backend_name()) not in ("sqlite", "postgresql"):
            cause = f"{name} is not supported"
            raise BadInputError(f"invalid FLEXY_DATABASE_URL: {cause}: use postgresql:// or sqlite:///")
        return url

    @cached_property
    def engine(self) -> Engine:
        try:
            if self.url.get_backend_name() == "sqlite":
                if self.url.database and self.url.database != ":memory:":
                    Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
                engine = create_engine(self.url, connect_args={"timeout": 60})
                event.listen(engine, "connect", _prepare_sqlite)
                event.listen(engine, "begin", _begin_sqlite)
            else:
                # Many small statements are sent in one message instead of waiting for an answer to each.
                engine = create_engine(self.url, executemany_mode="values_plus_batch")
                event.listen(engine, "connect", _prepare_postgres)
                event.listen(engine, "checkin", _note_use)
                event.listen(engine, "checkout", _ping_idle_connection)
        except (NoSuchModuleError, ImportError, OSError, ValueError) as error:
            raise BadInputError(f"cannot use {self}: {_first_line(error)}: check FLEXY_DATABASE_URL") from None
        return engine

    @contextmanager
    def begin(self, reading: bool = False) -> Iterator[Connection]:
        """Yield a connection in one transaction; with `reading`, the block must not write, and waits for no writer."""
        with self._named_errors():
            self._check_pooler()
            with self.engine.execution_options(reading=reading).begin() as connection:
                self._reached = True
                yield connection

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """Yield a new connection that commits each statement; it is closed at the end, and its locks are released."""
        with self._named_errors():
            self._check_pooler()
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.detach()
                self._reached = True
                yield connection

    def _check_pooler(self) -> None:
        """Raise `BadInputError` behind a pooler that gives each transaction another session, as PgBouncer can.

        Locks and settings of a session would then be another client's. A session that is free between two statements
        is taken by a second client.
        """
        if self._reached or self.url.get_backend_name() == "sqlite":
            return
        process = text("SELECT pg_backend_pid()")
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not connection.info["pooled"]:
                return
            first = connection.scalar(process)
            with self.engine.connect() as other:
                if other.scalar(process) != first and connection.scalar(process) == first:
                    return
        cause = "a pooler in transaction mode gives each transaction another session"
        raise BadInputError(f"cannot use {self}: {cause}: name Postgres itself, or set its pool mode to session")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if error.connection_invalidated or not self._is_reachable():
                kind = FlexyError if self._reached else BadInputError
                remedy = "check FLEXY_DATABASE_URL and that it is running"
                raise kind(f"cannot reach {self}: {_first_line(error.orig)}: {remedy}") from None
            raise FlexyError(f"{self} refused a statement: {_first_line(error.orig)}: {_FIX}") from error

    def _is_reachable(self) -> bool:
        try:
            with self.engine.connect():
                return True
        except DBAPIError:
            return False

    def __str__(self) -> str:
        masked = self.url.difference_update_query(["password", "sslpassword"])
        return masked.render_as_string(hide_password=True)


@contextmanager
def named_database_errors(what: str) -> Iterator[None]:
    """Raise another library's database error in the block as a `FlexyError` that names the database."""
    try:
        yield
    except DBAPIError as error:
        raise FlexyError(f"{what} cannot be used: {_first_line(error.orig)}: {_FIX}") from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Transactions begin explicitly (below), not where the driver guesses that a statement needs one.
    connection.isolation_level = None
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _prepare_postgres(connection: Any, record: Any) -> None:
    """Take times without a zone, as Flexy writes them, for UTC, because FlexyFace's columns have one.

    Where the process that answers is not the one that greeted, a pooler lies between.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'; SELECT pg_backend_pid()")
        record.info["pooled"] = cursor.fetchone()[0] != connection.info.backend_pid
    connection.commit()


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _ping_idle_connection(connection: Any, record: Any, _proxy: Any) -> None:
    """Check an idle connection before it is used, because its server may have been restarted."""
    if time.monotonic() - record.info.get("used", math.inf) > IDLE_SECONDS:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            connection.rollback()
        except Exception as error:
            raise DisconnectionError from error


def _begin_sqlite(connection: Connection) -> None:
    # Writers that take the write lock at once wait for each other; a lock requested later fails instead.
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
