"""A server as somebody would run it: Dagster's daemon, its bookkeeping and the results in one Postgres."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import dagster as dg
import psycopg2
import pytest

from resources.database import Database
from tests.support import flexyface
from tests.support.service import Service, environment

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


def create_database(server: PostgresServer) -> str:
    """A new database on the private server; its URL."""
    connection = psycopg2.connect(server.url("postgres"))
    connection.autocommit = True
    name = f"test_{uuid4().hex}"
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return server.url(name)


@pytest.fixture
def service(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Service]]:
    """`service(goes, scored)` brings a FlexyFace database; its daemons are stopped at the end."""
    made: list[Service] = []

    def make(goes: Sequence[int], scored: int, **more: str) -> Service:
        database = Database(create_database(postgres_server))
        flexyface.bring(database, tmp_path / "pictures", goes, scored)
        results = database.url.render_as_string(hide_password=False)
        chosen = environment(tmp_path, results, create_database(postgres_server)) | more
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)
        made.append(Service(tmp_path, database, dict(os.environ)))
        return made[-1]

    yield make
    for service in made:
        service.stop()
        service.database.engine.dispose()


@pytest.fixture
def instance(service: Callable[..., Service]) -> Iterator[Callable[[], dg.DagsterInstance]]:
    """The bookkeeping that the UI shows; to be asked for after the service was brought."""
    opened: list[dg.DagsterInstance] = []

    def get() -> dg.DagsterInstance:
        opened.append(dg.DagsterInstance.get())
        return opened[-1]

    yield get
    for found in opened:
        found.dispose()
