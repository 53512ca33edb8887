"""What tests share: a home of their own, both databases, and images in them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result

from flexy_assets.cli.app import main
from flexy_assets.cli.json_keys import JSON_KEYS
from flexy_assets.cli.session import Session
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import add_images, save_sweep
from flexy_assets.storage.sql import utc_now
from resources.database import Database
from resources.metrics.sweep import METRICS
from tests.support import forked, label_studio, shortcuts
from tests.support.browser import Browser, program

shortcuts.apply()

ROOT = Path(__file__).parent.parent
Flexy = Callable[..., Result]
Adder = Callable[..., list[UUID]]
RUN = UUID("4b7193fd-0000-4000-8000-000000000000")
BATCH = "4b7193fd_0000"


on_sqlite = pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("empty_database", ["postgres"], indirect=True)
"""For tests on a database to which it makes no difference which one, or which are of this one only."""

MISSING_REMEDIES = {
    "no Postgres": "install Postgres (apt-get install postgresql)",
    "no Chromium": "install Chromium (apt-get install chromium)",
    "no Label Studio": "install Label Studio (make label-studio)",
    "no MkDocs": "install MkDocs (make docs)",
}
"""How to get what a skipped test says is missing."""

FIXTURE_MARKERS = {"postgres_server": "postgres", "label_studio_server": "label_studio", "browser": "browser"}
"""What a test needs of the machine, by the fixture that starts it."""


def pytest_configure(config: pytest.Config) -> None:
    """Fork the processes that run the tests, so that they need not import the large libraries each."""
    # What tests start by its path is a Python of its own, and measures and imports as a user's does.
    sys.executable = forked.PYTHON
    multiprocessing.set_executable(sys.executable)
    if not hasattr(config, "workerinput") and config.getoption("tx", None):
        workers = config.option.tx
        config.option.tx = [f"popen//python={forked.start_server()}/python" for _ in workers]


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later search for garbage."""
    shortcuts.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a test needs of the machine, and put the slowest files first, so that no core ends alone."""
    seconds: dict[Path, float] = {}
    for item in items:
        for fixture, marker in FIXTURE_MARKERS.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
        parameters = getattr(item, "callspec", None)
        if parameters and parameters.params.get("empty_database") == "postgres":
            item.add_marker("postgres")
        for marker in item.iter_markers("slow"):
            seconds[item.path] = max(seconds.get(item.path, 0), marker.kwargs.get("seconds", 5))
    items.sort(key=lambda item: -seconds.get(item.path, 0))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in one line what the tests lacked on this machine, and how to get it."""
    reasons = [str(report.longrepr[2]) for report in terminalreporter.getreports("skipped")]
    missing = {remedy for word, remedy in MISSING_REMEDIES.items() if any(word in reason for reason in reasons)}
    if missing:
        terminalreporter.write_line(
            f"not all tests could run on this machine: {'; '.join(sorted(missing))}", yellow=True
        )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FLEXY_HOME of the test's own, and nothing else of the user's set-up."""
    for name in ("DAGSTER_HOME", "FLEXY_DAGSTER_STORAGE", "FLEXY_DATABASE_URL", "FLEXY_IMAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLEXY_HOME", str(tmp_path))
    monkeypatch.setenv("FLEXY_MODELS", "mini")
    return tmp_path


@pytest.fixture
def no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process compute scores, and not the tables and the report that follow."""
    monkeypatch.setattr(Session, "update_results", lambda *_: [])


@pytest.fixture
def results() -> None:
    """What a test asks for that looks at the tables or the report a command leaves."""


def check_json_keys(arguments: Sequence[str], document: dict[str, Any]) -> None:
    """Hold what a command printed to the keys that the reference declares for it."""
    words = (
        " ".join(arguments)
        .replace("labels ", "inpaint ", 1)
        .replace("heal", "backfill", 1)
        .replace("models --", "models list --")
    )
    declared = max((each for each in JSON_KEYS if f"{words} ".startswith(f"{each} ")), key=len)
    allowed = {*JSON_KEYS[declared], *METRICS} if "METRIC" in JSON_KEYS[declared] else {*JSON_KEYS[declared]}
    assert document.keys() <= allowed | {"error"}, f"flexy {declared}: keys without an entry in cli/json_keys.py"


@pytest.fixture
def flexy(home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Flexy:
    """The command, run in this process, on a home of the test's own; without results, unless the test asks for them."""
    if "results" not in request.fixturenames:
        request.getfixturevalue("no_results")
    # Set, so that what the command itself sets by default is undone with them.
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    monkeypatch.setenv("FLEXY_DAGSTER_STORAGE", str(home / "dagster"))
    # So wide that no table is broken.
    monkeypatch.setenv("COLUMNS", "250")

    def flexy(*arguments: str) -> Result:
        result = CliRunner().invoke(main, arguments, prog_name="flexy")
        if "--json" in arguments and result.stdout:
            check_json_keys(arguments, json.loads(result.stdout))
        return result

    return flexy


@dataclass
class PostgresServer:
    """A server in a folder of its own: trusted over its socket, by password over TCP."""

    programs: Path
    folder: Path
    port: int
    password: str
    _process: subprocess.Popen[bytes] | None = None

    def url(self, name: str) -> str:
        return f"postgresql://flexy:{self.password}@127.0.0.1:{self.port}/{name}"

    def psql(self, name: str, statement: str) -> bytes:
        """What psql prints for one statement. Raises `FileNotFoundError` where there is no psql."""
        psql = shutil.which("psql", path=f"{self.programs}{os.pathsep}{os.environ.get('PATH', '')}")
        if psql is None:
            raise FileNotFoundError("psql")
        where = ["-h", str(self.folder), "-p", str(self.port), "-U", "flexy", "-d", name]
        done = subprocess.run(
            [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", *where, "-c", statement], capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def whom(self) -> dict[str, Any]:
        """Postgres refuses to run as root."""
        return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}

    def create(self) -> None:
        if self.whom:
            shutil.chown(self.folder, "postgres", "postgres")
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        access = ["--auth-local=trust", "--auth-host=scram-sha-256", "--username=flexy", f"--pwfile={secret}"]
        command = [self.programs / "initdb", "--no-sync", "--encoding=UTF8", "--locale=C", *access]
        with self.log.open("ab") as log:
            where = {"cwd": self.folder, "stdout": log, "stderr": log} | self.whom
            made = subprocess.run([*command, "-D", self.folder / "data"], timeout=120, **where)
        assert made.returncode == 0, self.log.read_text()

    def start(self) -> None:
        """Returns once it answers."""
        options = [
            f"-k{self.folder}",
            f"-p{self.port}",
            *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "full_page_writes=off"),
        ]
        command = [self.programs / "postgres", "-D", self.folder / "data", *options]
        with self.log.open("ab") as log:
            where = {"cwd": self.folder, "stdout": log, "stderr": log} | self.whom
            self._process = subprocess.Popen(command, **where)
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the private Postgres did not start:\n{self.log.read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.url("postgres")).close()
        except psycopg2.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """A fast shutdown: sessions are ended, data is flushed."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A private Postgres in a temporary folder, stopped at the end.

    Skips where none is installed; fails instead where FLEXY_REQUIRE_POSTGRES is set.
    """
    programs = _postgres_programs()
    if programs is None:
        missing = pytest.fail if os.environ.get("FLEXY_REQUIRE_POSTGRES") else pytest.skip
        missing("no Postgres server here: neither initdb on PATH nor /usr/lib/postgresql/*/bin")
        return
    # By name: a socket's path is at most 107 bytes, and the postgres user must be able to enter it.
    folder = Path(tempfile.mkdtemp(prefix="flexy-postgres-", dir=shortcuts.find_fast_folder()))
    server = PostgresServer(programs, folder, free_port(), secrets.token_hex(8))
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def label_studio_server() -> Iterator[label_studio.Server]:
    """A Label Studio with one user and no project, in a temporary folder, stopped at the end.

    Skips where none is installed; fails instead where FLEXY_REQUIRE_LABEL_STUDIO is set. Its start takes a while, and
    each test process that asks for one starts one: keep what needs it in few files.
    """
    if reason := label_studio.missing():
        (pytest.fail if os.environ.get("FLEXY_REQUIRE_LABEL_STUDIO") else pytest.skip)(reason)
    with tempfile.TemporaryDirectory(prefix="flexy-label-studio-", ignore_cleanup_errors=True) as folder:
        server = label_studio.Server(Path(folder), free_port())
        try:
            server.create()
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium with one tab, closed at the end.

    Skips where none is installed; fails instead where FLEXY_REQUIRE_BROWSER is set.
    """
    found = program()
    if found is None:
        (pytest.fail if os.environ.get("FLEXY_REQUIRE_BROWSER") else pytest.skip)("no Chromium on PATH")
        return
    browser = Browser(found)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def drawn_figures() -> Iterator[None]:
    """Figures that are drawn as a user sees them (see `tests.support.shortcuts`)."""
    with shortcuts.drawn_figures():
        yield


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of pages are kept: FLEXY_SCREENSHOTS, or a folder that goes with the tests' own."""
    kept = os.environ.get("FLEXY_SCREENSHOTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("screenshots")


def _postgres_programs() -> Path | None:
    """The folder of initdb and postgres: the one on PATH, else the newest installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)], reverse=True)
    return next((path for path in folders if (path / "initdb").exists() and (path / "postgres").exists()), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without a table, on SQLite and on Postgres; dropped at the end."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'database' / 'flexy.sqlite'}")
        yield database
        database.engine.dispose()
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"test_{uuid4().hex}"
    with _autocommit(server) as execute:
        execute(f"CREATE DATABASE {name}")
    database = Database(server.url(name))
    yield database
    database.engine.dispose()
    with _autocommit(server) as execute:
        execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _autocommit(server: PostgresServer) -> Iterator[Callable[[str], None]]:
    """Statements that Postgres takes outside a transaction only."""
    import psycopg2

    connection = psycopg2.connect(server.url("postgres"))
    connection.autocommit = True
    try:
        yield connection.cursor().execute
    finally:
        connection.close()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with our tables, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "flexy.sqlite"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.engine.dispose()
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """The name of a database with our tables on the private server, to be copied."""
    with _autocommit(postgres_server) as execute:
        execute("CREATE DATABASE migrated")
    database = Database(postgres_server.url("migrated"))
    migrate(database)
    database.engine.dispose()
    return "migrated"


@pytest.fixture
def database(empty_database: Database, request: pytest.FixtureRequest) -> Database:
    """A database with our tables, on SQLite and on Postgres: a copy of one that was migrated."""
    name = str(empty_database.url.database)
    if empty_database.url.get_backend_name() == "sqlite":
        Path(name).parent.mkdir()
        shutil.copy(request.getfixturevalue("migrated"), name)
        return empty_database
    template = request.getfixturevalue("migrated_postgres")
    with _autocommit(request.getfixturevalue("postgres_server")) as execute:
        execute(f"DROP DATABASE {name}")
        execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return empty_database


@pytest.fixture
def add(database: Database) -> Adder:
    """`add(count, **columns)` adds images to `RUN` and returns their ids, in the order they are offered."""

    def add(count: int = 1, **columns: Any) -> list[UUID]:
        ids = [uuid4() for _ in range(count)]
        fixed = {"run_id": RUN, "engine": "mini_sdxl", "batch": BATCH, "prompt": "a red disc", "steps": 8}
        began = utc_now()
        rows = [
            fixed | {"id": image_id, "created_at": began + timedelta(milliseconds=place)} | columns
            for place, image_id in enumerate(ids)
        ]
        with database.begin() as connection:
            save_sweep(connection, RUN, "mini_sdxl", 100, {"seed": 0})
            add_images(connection, rows)
        return ids

    return add
