"""What is wrong with a database is said in one line, and never with its password."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from resources.database import Database
from resources.errors import BadInputError, FlexyError
from tests.conftest import free_port

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

PASSWORD = "opensesame"


def complaint(url: str) -> str:
    with pytest.raises(BadInputError) as caught, Database(url).begin():
        pass
    message = str(caught.value)
    assert "\n" not in message
    assert PASSWORD not in message
    return message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        f"u:{PASSWORD}@host/name",
        f"postgresql://u:{PASSWORD}@host:port/name",
        # An @ that is not written %40: the rest of the password reads as the host's beginning.
        f"postgresql://u:p@{PASSWORD}@127.0.0.1:1/name",
        f"postgresql://u:p@x:{PASSWORD}@127.0.0.1:1/name",
    ],
)
def test_a_url_that_cannot_be_read(url: str) -> None:
    assert "invalid FLEXY_DATABASE_URL: write postgresql://USER:PASSWORD@HOST/NAME" in complaint(url)


def test_a_database_we_do_not_keep_results_in() -> None:
    message = complaint(f"mysql://u:{PASSWORD}@host/name")
    assert "mysql" in message and "use postgresql:// or sqlite:///" in message


def test_a_driver_that_is_not_there() -> None:
    assert "asyncpg" in complaint(f"postgresql+asyncpg://u:{PASSWORD}@host/name")


def test_a_database_lost_on_the_way_is_work_that_failed(tmp_path: Path) -> None:
    file = tmp_path / "results" / "flexy.sqlite"
    database = Database(f"sqlite:///{file}")
    with database.begin():
        pass
    database.engine.dispose()
    shutil.rmtree(file.parent)
    with pytest.raises(FlexyError, match="cannot reach") as caught, database.begin():
        pass
    assert caught.value.status == 1


@pytest.mark.parametrize("spelling", ["u:{0}@{1}/name", "u@{1}/name?password={0}", "u:p%40{0}@{1}/name"])
def test_a_postgres_that_does_not_answer(spelling: str) -> None:
    with socket.socket() as held:
        # Bound but not listening: nobody answers here, and nobody else can take it.
        held.bind(("127.0.0.1", 0))
        message = complaint("postgresql://" + spelling.format(PASSWORD, f"127.0.0.1:{held.getsockname()[1]}"))
    assert "Connection refused" in message and "check FLEXY_DATABASE_URL" in message


def test_a_postgres_that_refuses_the_password(postgres_server: PostgresServer) -> None:
    message = complaint(f"postgresql://flexy:{PASSWORD}@127.0.0.1:{postgres_server.port}/postgres")
    assert "password authentication failed" in message


def test_a_postgres_that_has_no_such_database(postgres_server: PostgresServer) -> None:
    message = complaint(postgres_server.url("nowhere"))
    assert '"nowhere" does not exist' in message
    assert postgres_server.password not in message


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_that_gives_each_transaction_another_session_is_refused(
    postgres_server: PostgresServer, mode: str
) -> None:
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.skip("no pgbouncer here")
    port, folder = free_port(), postgres_server.folder
    settings = folder / f"{mode}.ini"
    settings.write_text(
        f"[databases]\npostgres = host={folder} port={postgres_server.port} user=flexy\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {mode}\n"
    )
    settings.chmod(0o644)
    command, whom = [program, "-q", str(settings)], postgres_server.whom
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **whom) as pooler:
        database = Database(f"postgresql://flexy@127.0.0.1:{port}/postgres")
        refusal = pytest.raises(BadInputError, match="a pooler in transaction mode gives")
        try:
            while pooler.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
            for connect in (database.begin, database.session):
                with refusal if mode == "transaction" else nullcontext(), connect() as connection:
                    assert connection.scalar(text("SELECT 1")) == 1
        finally:
            database.engine.dispose()
            pooler.terminate()


def test_a_sqlite_file_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = complaint(f"sqlite:///{tmp_path / 'file' / 'flexy.sqlite'}")
    assert str(tmp_path / "file") in message


def test_a_sqlite_file_that_is_a_folder(tmp_path: Path) -> None:
    assert str(tmp_path) in complaint(f"sqlite:///{tmp_path}")


def test_a_sqlite_file_that_is_something_else(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 100)
    assert "file is not a database" in complaint(f"sqlite:///{file}")
    assert file.read_text().startswith("not a database")


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new' / 'flexy.sqlite'}")
    assert str(database) and list(tmp_path.iterdir()) == []


def test_a_refused_statement_is_work_that_failed_in_one_line(empty_database: Database) -> None:
    with pytest.raises(FlexyError) as caught, empty_database.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM nowhere")
    assert not isinstance(caught.value, BadInputError)
    message = str(caught.value)
    assert "nowhere" in message and "\n" not in message
    assert (empty_database.url.password or PASSWORD) not in message


def test_what_was_written_before_an_error_is_rolled_back(empty_database: Database) -> None:
    with pytest.raises(ZeroDivisionError), empty_database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
        raise ZeroDivisionError
    with empty_database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")


def test_a_connection_that_ended_while_nobody_used_it_is_replaced(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.database.IDLE_SECONDS", 0)
    database = Database(postgres_server.url("postgres"))
    with database.begin() as connection:
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    postgres_server.psql("postgres", f"SELECT pg_terminate_backend({backend}, 5000)")
    with database.begin() as connection:
        assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() != backend
    database.engine.dispose()
