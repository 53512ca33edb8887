"""Dagster's bookkeeping in Postgres, what starts on it, and the units and variables of a server."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.selector import InstigatorSelector
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._core.scheduler.instigation import InstigatorType, TickData, TickStatus

from flexy_assets.definitions import defs
from resources.settings import Settings, variable_names

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.slow(seconds=50)

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SENSOR = InstigatorSelector(location_name="flexy", repository_name="__repository__", name="dead_runs").get_id()
"""What Dagster knows a sensor of ours by."""


@dataclass
class Databases:
    """The two of a server, empty at first."""

    server: PostgresServer
    dagster: str
    results: str

    def environment(self, home: Path) -> dict[str, str]:
        """What a user exports, and nothing else of this process's set-up."""
        foreign = ("FLEXY_", "DAGSTER_", "MAKE", "MFLAGS", "PYTEST_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return kept | {
            "FLEXY_HOME": str(home),
            "FLEXY_DAGSTER_URL": self.server.url(self.dagster),
            "FLEXY_DATABASE_URL": self.server.url(self.results),
            "PYTHONUNBUFFERED": "1",
        }

    def asked(self, query: str) -> list[str]:
        """The rows of Dagster's database, as text."""
        return self.server.psql(self.dagster, f"COPY ({query}) TO STDOUT").decode().splitlines()


@pytest.fixture(scope="module")
def databases(postgres_server: PostgresServer) -> Iterator[Databases]:
    names = [f"{kind}_{uuid4().hex}" for kind in ("dagster", "results")]
    for name in names:
        postgres_server.psql("postgres", f"CREATE DATABASE {name}")
    yield Databases(postgres_server, *names)
    for name in names:
        postgres_server.psql("postgres", f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _described(databases: Databases, storage: Path) -> Iterator[dg.DagsterInstance]:
    """The instance that deploy/postgres/dagster.yaml describes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXY_DAGSTER_URL", databases.server.url(databases.dagster))
        patch.setenv("FLEXY_DAGSTER_STORAGE", str(storage))
        with dg.DagsterInstance.from_config(str(DEPLOY / "postgres")) as instance:
            yield instance


@pytest.fixture
def instance(databases: Databases, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with _described(databases, tmp_path) as instance:
        yield instance


# The instance.


@dg.op
def nothing() -> None: ...


@dg.job
def trivial() -> None:
    nothing()


def test_runs_events_and_ticks_are_kept_in_postgres(
    instance: dg.DagsterInstance, databases: Databases, tmp_path: Path
) -> None:
    run = trivial.execute_in_process(instance=instance).run_id
    instance.create_tick(_tick("a_tick_of_its_own", time.time()))
    assert databases.asked("SELECT run_id, status FROM runs") == [f"{run}\tSUCCESS"]
    events = databases.asked("SELECT dagster_event_type FROM event_logs WHERE dagster_event_type IS NOT NULL")
    assert {"PIPELINE_START", "STEP_SUCCESS", "PIPELINE_SUCCESS"} <= set(events)
    assert databases.asked("SELECT status FROM job_ticks WHERE selector_id = 'a_tick_of_its_own'") == ["SKIPPED"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".db"], "SQLite keeps nothing of it"
    assert list(tmp_path.glob(f"{run}/compute_logs/*")), "what a run prints is a file"


def test_a_second_step_waits_for_the_gpu_and_queued_runs_for_the_code_server(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default("gpu")
    first, second = storage.claim_concurrency_slot("gpu", "a", "x"), storage.claim_concurrency_slot("gpu", "b", "x")
    storage.free_concurrency_slots_for_run("a")
    storage.free_concurrency_slots_for_run("b")
    assert (first.is_claimed, second.is_claimed) == (True, False)
    assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert 1 < queue.max_concurrent_runs < 10
    assert queue.max_user_code_failure_retries * queue.user_code_failure_retry_delay >= 120


def test_what_hangs_is_ended_and_nobody_is_told_what_runs_here(instance: dg.DagsterInstance) -> None:
    monitoring = instance.run_monitoring_settings
    assert instance.run_monitoring_enabled
    assert monitoring["free_slots_after_run_end_seconds"] == 30
    assert 33 * 3600 < monitoring["max_runtime_seconds"] < 7 * 24 * 3600
    assert monitoring["cancel_timeout_seconds"] > 0 < monitoring["start_timeout_seconds"]
    assert (instance.telemetry_enabled, instance.nux_enabled) == (False, False)


def _tick(selector: str, timestamp: float) -> TickData:
    return TickData(
        instigator_origin_id=selector,
        instigator_name="dead_runs",
        instigator_type=InstigatorType.SENSOR,
        status=TickStatus.SKIPPED,
        timestamp=timestamp,
        selector_id=selector,
    )


# `make up`.


@dataclass
class Served:
    """A `make up` that answers."""

    process: subprocess.Popen[bytes]
    home: Path
    url: str
    log: Path

    def graphql(self, query: str) -> Any:
        request = urllib.request.Request(
            f"{self.url}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)["data"]

    def processes(self) -> dict[int, str]:
        """The command line of whatever it started that lives, found by the home in its environment."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"FLEXY_HOME={self.home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return {number: command for number, command in found.items() if command}


@pytest.fixture(scope="module")
def served(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real target, as from a terminal: a process group of its own."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are found by /proc")
    home = tmp_path_factory.mktemp("up") / "home"
    with _described(databases, home) as instance:
        instance.create_tick(_tick(SENSOR, time.time() - 3 * 24 * 3600))
    port, files = _free_port(), _free_port()
    log = home.parent / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*_make("up"), f"PORT={port}", f"FILES_PORT={files}"],
            cwd=ROOT,
            env=databases.environment(home),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    served = Served(process, home, f"http://127.0.0.1:{port}", log)
    try:
        _until(lambda: served.graphql("{version}"), 90, log)
        yield served
    finally:
        for number in served.processes():
            os.kill(number, signal.SIGKILL)
        process.wait(30)


def _make(target: str) -> list[str]:
    # What is installed stays as it is while the tests run from it.
    return ["make", "--no-print-directory", "--old-file=.venv/.installed", target]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _until(condition: Callable[[], Any], seconds: float, log: Path) -> None:
    """Wait until something holds; whatever is not there yet may raise OSError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            pytest.fail(f"not in {seconds:.0f} s:\n{log.read_text()[-5000:]}")
        time.sleep(0.2)


def test_up_serves_sensors_and_schedule_with_all_daemons_healthy(served: Served, databases: Databases) -> None:
    query = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
        sensors { name sensorState { status } }
        schedules { name cronSchedule scheduleState { status } } } } } }"""
    (repository,) = served.graphql(query)["repositoriesOrError"]["nodes"]
    # Without a project of Label Studio's there is nothing to look at.
    sensors = {sensor.name: "STOPPED" if sensor.name == "new_labels" else "RUNNING" for sensor in defs.sensors or []}
    assert {"dead_runs", "new_images", "new_labels"} <= sensors.keys()
    assert {sensor["name"]: sensor["sensorState"]["status"] for sensor in repository["sensors"]} == sensors
    nightly = {"name": "nightly_backfill", "cronSchedule": "0 2 * * *", "scheduleState": {"status": "RUNNING"}}
    assert nightly in repository["schedules"]

    def healthy() -> bool:
        daemons = served.graphql("{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }")
        statuses = daemons["instance"]["daemonHealth"]["allDaemonStatuses"]
        assert {"SENSOR", "SCHEDULER", "QUEUED_RUN_COORDINATOR", "MONITORING"} <= {s["daemonType"] for s in statuses}
        return all(status["healthy"] for status in statuses if status["required"])

    _until(healthy, 60, served.log)
    assert databases.asked("SELECT daemon_type FROM daemon_heartbeats"), "their heartbeats are in Postgres"


def test_a_sensors_tick_forgets_those_that_are_too_old(served: Served, databases: Databases) -> None:
    def ages() -> list[str]:
        return databases.asked(
            f"SELECT timestamp < now() - interval '2 days' FROM job_ticks WHERE selector_id='{SENSOR}'"
        )

    _until(lambda: set(ages()) == {"f"}, 60, served.log)


def test_ups_passwords_are_in_no_log_no_process_list_and_not_in_the_ui(served: Served, databases: Databases) -> None:
    secret = databases.server.password
    commands = served.processes()
    assert len(commands) >= 4, "make, code server, webserver and daemon at least"
    told = [command for command in commands.values() if secret in command]
    told += [str(path) for path in served.home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert told == []
    assert secret not in served.log.read_text()
    configuration = served.graphql("{ instance { info } }")["instance"]["info"]
    assert "PostgresRunStorage" in configuration
    assert secret not in configuration


def test_control_c_ends_whatever_up_started(served: Served) -> None:
    assert served.processes()
    os.killpg(served.process.pid, signal.SIGINT)
    # A code server that was starting ends by itself, 45 s after its last heartbeat.
    _until(lambda: not served.processes(), 150, served.log)


def test_up_refuses_one_database_for_both_in_one_line_and_starts_nothing(databases: Databases, tmp_path: Path) -> None:
    environment = databases.environment(tmp_path / "home")
    # The same server by another name.
    environment["FLEXY_DATABASE_URL"] = environment["FLEXY_DAGSTER_URL"].replace("127.0.0.1", "localhost")
    assert _refused(environment) == (
        "flexy: FLEXY_DAGSTER_URL and FLEXY_DATABASE_URL name the same database: create one for Dagster alone"
    )


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite:///dagster.sqlite", "postgresql://flexy:gu@ess@127.0.0.1/x"])
def test_up_refuses_what_is_no_postgres_without_repeating_it(databases: Databases, tmp_path: Path, url: str) -> None:
    refused = _refused(databases.environment(tmp_path / "home") | {"FLEXY_DAGSTER_URL": url})
    assert "FLEXY_DAGSTER_URL" in refused
    assert "postgresql://USER:PASSWORD@HOST/NAME" in refused
    assert "ess" not in refused


def _refused(environment: Mapping[str, str]) -> str:
    """The one line of a `make up` that does not start."""
    done = subprocess.run(_make("up"), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    line, of_make = done.stderr.splitlines()
    assert of_make.startswith("make: ***")
    assert not Path(environment["FLEXY_HOME"]).exists()
    return line


def test_ui_stays_on_the_embedded_storage(databases: Databases, tmp_path: Path) -> None:
    # What its recipe would find, told by a prerequisite of it that then fails.
    told = ["--eval=ui: told", "--eval=told: ; @echo $$DAGSTER_HOME && false"]
    command = [*_make("ui"), *told]
    done = subprocess.run(command, cwd=ROOT, env=databases.environment(tmp_path), capture_output=True, text=True)
    home = Path(done.stdout.strip())
    assert list(yaml.safe_load((home / "dagster.yaml").read_text())["storage"]) == ["sqlite"]


# The server's files.


def _unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters="=")
    setattr(parser, "optionxform", str)  # noqa: B010  (keys in their own case)
    parser.read_string(path.read_text().replace("\\\n", " "))
    return parser


def test_units_start_what_is_there_and_leave_no_process(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    for path in UNITS:
        service, unit = _unit(path)["Service"], _unit(path)["Unit"]
        for command in (service["ExecStart"], service.get("ExecStartPre", service["ExecStart"])):
            assert (programs / Path(command.split()[0]).name).exists(), command
        named = re.findall(r"deploy/\S+", path.read_text())
        assert all((ROOT / name).exists() for name in named), named
        assert service["User"] == "flexy"
        assert service["Restart"] == "always"
        assert service.get("KillMode", "control-group") == "control-group"
        after = re.findall(r"flexy-\w+\.service", unit.get("After", ""))
        assert all((path.parent / name).exists() for name in after)
        assert "://" not in path.read_text()
        if path.stem != "flexy-files":
            assert service["EnvironmentFile"] == "/etc/flexy/flexy.env"
            assert service["ExecStartPre"].endswith("deploy/postgres/check.py")
    if analyze := shutil.which("systemd-analyze"):
        for path in UNITS:
            there = path.read_text().replace("/opt/flexy/.venv", sys.prefix).replace("/opt/flexy", str(ROOT))
            (tmp_path / path.name).write_text(there)
        units = [tmp_path / path.name for path in UNITS]
        verified = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, timeout=60)
        assert verified.returncode == 0, verified.stderr
        assert "flexy-" not in verified.stderr, verified.stderr


def test_webserver_and_daemon_ask_the_one_code_server_whose_socket_only_flexy_may_enter() -> None:
    (server,) = yaml.safe_load((DEPLOY / "systemd" / "workspace.yaml").read_text())["load_from"]
    code = _unit(DEPLOY / "systemd" / "flexy-code.service")["Service"]
    (embedded,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert f"--socket {server['grpc_server']['socket']} " in code["ExecStart"]
    assert f"--module-name {embedded['python_module']['module_name']} " in code["ExecStart"]
    assert server["grpc_server"]["location_name"] == embedded["python_module"]["location_name"] == "flexy"
    assert (code["RuntimeDirectory"], code["RuntimeDirectoryMode"]) == ("flexy", "0700")
    for name in ("flexy-daemon", "flexy-webserver"):
        command = _unit(DEPLOY / "systemd" / f"{name}.service")["Service"]["ExecStart"]
        assert "--workspace deploy/systemd/workspace.yaml" in command


def test_every_variable_of_the_example_is_read_and_every_one_of_dagsters_is_in_it() -> None:
    example = (DEPLOY / "systemd" / "flexy.env.example").read_text()
    named = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    by_dagster = set(re.findall(r"env: (\w+)", (DEPLOY / "postgres" / "dagster.yaml").read_text()))
    by_libraries = {"DAGSTER_HOME", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE"}
    assert named - set(variable_names()) - by_dagster - by_libraries == set()
    assert by_dagster | {"DAGSTER_HOME", "FLEXY_DATABASE_URL"} <= set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))


def test_the_example_is_read_by_a_shell_as_by_systemd_with_all_variables_on(tmp_path: Path) -> None:
    example = (DEPLOY / "systemd" / "flexy.env.example").read_text()
    file = tmp_path / "flexy.env"
    file.write_text(re.sub(r"^#([A-Z_]+=)", r"\1", example, flags=re.MULTILINE))
    script = f"set -a; . {file}; exec {sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    done = subprocess.run(["sh", "-euc", script], env={}, capture_output=True, text=True, check=True)
    settings = Settings.read(json.loads(done.stdout))
    assert settings.nightly == "0 2 * * *"
    assert settings.models == "full"
    assert settings.failure_webhook
    assert json.loads(done.stdout)["DAGSTER_HOME"] == "/opt/flexy/deploy/postgres"
