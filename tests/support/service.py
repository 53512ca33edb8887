"""Dagster's daemon at work on a FlexyFace database, as a server would run it. Used by tests and benchmarks."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa

from flexy_assets.dead_runs import PROCESS_TAG
from flexy_assets.storage.tables import METRIC_COLUMNS
from resources.database import Database
from tests.support import flexyface, forked

ROOT = Path(__file__).parents[2]
BACKFILL_JOB = "backfill_scores"
SERVICE = "TEST_SERVICE"
"""The variable by which the processes of a service are known."""


def environment(home: Path, results: str, bookkeeping: str) -> dict[str, str]:
    """What the service is told: `home` holds the pictures, the URLs name the two databases."""
    return {
        "FLEXY_HOME": str(home),
        "FLEXY_DATABASE_URL": results,
        "FLEXY_IMAGES": str(home / "pictures"),
        "FLEXY_PROMPT_COLUMN": flexyface.PROMPT_COLUMN,
        "FLEXY_MODELS": "mini",
        "FLEXY_NIGHTLY": "0 0 29 2 *",
        "FLEXY_DAGSTER_URL": bookkeeping,
        "FLEXY_DAGSTER_STORAGE": str(home / "dagster"),
        "DAGSTER_HOME": str(ROOT / "deploy" / "postgres"),
    }


def nightly_ticks(instance: dg.DagsterInstance) -> list[Any]:
    """The ticks of `nightly_backfill` that have ended, oldest first."""
    states = [s for s in instance.all_instigator_state() if s.instigator_name == "nightly_backfill"]
    ticks = instance.get_ticks(states[0].instigator_origin_id, states[0].selector_id) if states else []
    return [tick for tick in reversed(ticks) if tick.status.value != "STARTED"]


@dataclass
class Service:
    """Dagster's daemon at work on an adopted FlexyFace database."""

    home: Path
    database: Database
    environment: dict[str, str]
    daemons: list[forked.Popen] = field(default_factory=list)

    def start(self, **environment: str) -> forked.Popen:
        """A daemon, with a code server of its own, in a process group of its own."""
        command = [sys.executable, "-m", "dagster._daemon", "run", "-w", "workspace.yaml"]
        log = (self.home / "daemon.log").open("ab")
        daemon = forked.Popen(
            command,
            env=self.environment | {SERVICE: str(self.home)} | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.daemons.append(daemon)
        return daemon

    def stop(self) -> None:
        """Everything the daemons started, at once."""
        for daemon in self.daemons:
            daemon.kill()
        # Until none is left: one may have started another meanwhile.
        while found := list(_started(self.home)):
            for process in found:
                _kill(process)
        for daemon in self.daemons:
            daemon.wait()

    def log(self) -> str:
        return (self.home / "daemon.log").read_text(errors="replace")[-6_000:]

    def runs(self, instance: dg.DagsterInstance, job: str = BACKFILL_JOB) -> list[dg.DagsterRun]:
        """The job's runs, oldest first."""
        return list(reversed(instance.get_runs(dg.RunsFilter(job_name=job))))

    def worker(self, run: dg.DagsterRun) -> int:
        """The number of the process that makes a run."""
        return int(run.tags[PROCESS_TAG].split("/")[1])

    def scalar(self, statement: str, **values: Any) -> Any:
        with self.database.begin(reading=True) as connection:
            return connection.scalar(sa.text(statement), values)

    def execute(self, statement: str, **values: Any) -> None:
        with self.database.begin() as connection:
            connection.execute(sa.text(statement), values)

    def table(self, columns: str = "*", table: str = "bench_run_results") -> dict[Any, dict[str, Any]]:
        """Every row by its id."""
        with self.database.begin(reading=True) as connection:
            rows = connection.execute(sa.text(f"SELECT {columns} FROM {table}")).mappings()
            return {row["id"]: dict(row) for row in rows}

    def missing(self) -> dict[str, int]:
        """How many images lack each score, by the columns themselves."""
        counts = ", ".join(f"count(*) - count({name}) AS {name}" for name in METRIC_COLUMNS)
        with self.database.begin(reading=True) as connection:
            return dict(connection.execute(sa.text(f"SELECT {counts} FROM bench_run_results")).mappings().one())

    def attempts(self) -> set[int]:
        """How often scores were computed, each of them."""
        with self.database.begin(reading=True) as connection:
            return set(connection.scalars(sa.text("SELECT attempts FROM image_scores")))


def _started(home: Path) -> Iterator[int]:
    """The processes that were started in the environment of the service at `home`."""
    mark = f"{SERVICE}={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait(condition: Callable[[], Any], seconds: float, service: Service) -> Any:
    """What the condition says once it says anything; fails with the daemon's log when it does not in time."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain; the daemon said:\n{service.log()}")
        time.sleep(0.1)
    return answer
