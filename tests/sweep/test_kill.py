"""Real runs, stopped at real moments: nothing is lost and nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from flexy_assets.dead_runs import PROCESS_TAG, process_tag
from flexy_assets.execution import dagster_instance
from resources.settings import Settings
from tests.support import forked

pytestmark = pytest.mark.slow(seconds=90)

ROOT = Path(__file__).parent.parent.parent
METRICS = ("clip_score", "aesthetic_score", "aes_v2_score", "hps_v2_score")
IMAGES = 96
CHUNK = 16
"""Images the mini engine makes between two commits."""


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own FLEXY_HOME, with the Dagster instance the command uses there."""
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    monkeypatch.setenv("FLEXY_DAGSTER_STORAGE", str(home / "dagster"))
    return home


def flexy(*arguments: str) -> forked.Popen:
    command = [sys.executable, "-m", "flexy_assets.cli.app", *arguments]
    return forked.Popen(command, stdout=forked.PIPE, stderr=forked.PIPE, text=True)


def answer(*arguments: str) -> dict[str, Any]:
    """The JSON document of a command that succeeds and has nothing to complain of."""
    process = flexy(*arguments, "--json")
    out, err = process.communicate(timeout=400)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


def plan(images: int) -> str:
    """The id of a new run in batches of 48."""
    settings = ("--engine", "mini_sdxl", "--images", str(images), "--steps", "1:2", "--batch-size", "48")
    return answer("sweep", "new", *settings)["run"]


def count(home: Path, table: str) -> int:
    with closing(sqlite3.connect(f"file:{home / 'flexy.sqlite'}?mode=ro", uri=True, timeout=60)) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def stop(home: Path, run: str, table: str, rows: int, dice: random.Random, how: signal.Signals) -> tuple[int, str, str]:
    """Start `sweep run`, wait until `table` has `rows` rows and a moment more, and send the signal.

    Returns the exit status and what was written on standard output and error.
    """
    process = flexy("sweep", "run", run)
    try:
        while count(home, table) < rows:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.15))
        process.send_signal(how)
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


@dataclass(frozen=True)
class Committed:
    """What the database and the disk hold at one moment."""

    images: dict[str, dict[str, Any]]
    scores: dict[tuple[str, str], dict[str, Any]]
    embeddings: dict[str, bytes]
    files: dict[str, int]
    """Each image's path and when it was last written (ns)."""
    unfinished: list[Path]

    @classmethod
    def read(cls, home: Path) -> Committed:
        def rows(table: str) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]

        with closing(sqlite3.connect(f"file:{home / 'flexy.sqlite'}?mode=ro", uri=True, timeout=60)) as connection:
            connection.row_factory = sqlite3.Row
            # One moment for all three.
            connection.execute("BEGIN")
            images, scores, embeddings = rows("bench_run_results"), rows("image_scores"), rows("image_embeddings")
        root = home / "images"
        found = cls(
            images={row["id"]: row for row in images},
            scores={(row["image_id"], row["metric"]): row for row in scores},
            embeddings={row["image_id"]: row["vector"] for row in embeddings},
            files={str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*.png")},
            unfinished=[p for p in root.rglob(".*") if p.is_file()],
        )
        assert (len(found.images), len(found.scores)) == (len(images), len(scores)), "a row is there twice"
        assert len(found.embeddings) == len(embeddings)
        return found

    def survives_in(self, later: Committed) -> None:
        """Everything that is here is there too, as it was; scores that were missing may have come."""
        for image_id, row in self.images.items():
            now = later.images[image_id]
            assert {k: v for k, v in now.items() if k not in METRICS or row[k] is not None} == {
                k: v for k, v in row.items() if k not in METRICS or v is not None
            }
            assert later.files[row["image_path"]] == self.files[row["image_path"]], "an image was made again"
        assert {key: later.scores.get(key) for key in self.scores} == self.scores
        assert {key: later.embeddings.get(key) for key in self.embeddings} == self.embeddings


def test_a_run_is_closed_where_its_process_is_dead_and_nowhere_else(home: Path) -> None:
    host, here = socket.gethostname(), f"{socket.gethostname()}/{os.getpid()}"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with dagster_instance(Settings.read()) as instance:

        def begin(process: str | None, **more: str) -> str:
            tags = more | ({PROCESS_TAG: process} if process else {})
            status = dg.DagsterRunStatus.STARTED
            parents = dict.fromkeys(("root_run_id", "parent_run_id"), more.get("dagster/parent_run_id"))
            return instance.add_run(dg.DagsterRun("sweep", status=status, tags=tags, **parents)).run_id

        dead = {begin(f"{host}/{ended.pid}/1"), begin(f"{here}/1")}  # gone; its number is another process's now
        alive = {begin(process_tag()), begin("another machine/1/1"), begin(None)}
        # A run that the UI started again has the tags of the first, and Dagster to look after it.
        (first, *_) = dead
        alive.add(begin(f"{host}/{ended.pid}/1", **{"dagster/parent_run_id": first, "dagster/root_run_id": first}))
        assert set(open_runs(instance)) == dead | alive
    with dagster_instance(Settings.read()) as instance:
        assert set(open_runs(instance)) == alive


def open_runs(instance: dg.DagsterInstance) -> list[str]:
    return [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))]


@pytest.mark.timeout(900)
def test_a_run_killed_again_and_again_loses_nothing_and_does_nothing_twice(home: Path) -> None:
    dice = random.Random(20240607)
    moments = [
        ("bench_run_results", 1),
        ("bench_run_results", dice.randint(20, 70)),
        ("image_embeddings", dice.randint(1, IMAGES)),
        ("image_scores", dice.randint(1, 3 * IMAGES)),
    ]
    run = plan(IMAGES)
    past: list[Committed] = []
    killed: list[str] = []
    with dg.DagsterInstance.get() as instance:
        for table, rows in moments:
            status, out, _ = stop(home, run, table, rows, dice, signal.SIGKILL)
            assert (status, out) == (-signal.SIGKILL, ""), "it was killed before its end"
            past.append(Committed.read(home))
            # The run before was closed by this one, whose own record nobody could close.
            (left_open,) = open_runs(instance)
            assert left_open not in killed
            killed.append(left_open)
            # What the kill cost: at most the chunk under way.
            written = {row["image_path"] for row in past[-1].images.values()}
            assert written <= set(past[-1].files), "a row without its file"
            assert len(set(past[-1].files) - written) <= CHUNK
            assert len(past[-1].unfinished) <= 1

        end = answer("sweep", "run", run)

        done = Committed.read(home)
        assert end["images_made"] == IMAGES - len(past[-1].images)
        assert end["scores_computed"] == 4 * IMAGES - len(past[-1].scores)
        for then in past:
            then.survives_in(done)

        assert len(done.images) == len({row["image_path"] for row in done.images.values()}) == IMAGES
        assert set(done.files) == {row["image_path"] for row in done.images.values()}
        for row in done.images.values():
            content = (home / "images" / row["image_path"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == row["image_sha256"]
            assert all(row[metric] == done.scores[row["id"], metric]["value"] is not None for metric in METRICS)
        assert len(done.scores) == 4 * IMAGES
        assert {score["attempts"] for score in done.scores.values()} == {1}, "a committed score was computed again"
        assert set(done.embeddings) == set(done.images)
        assert done.unfinished == []

        assert open_runs(instance) == []
        for run_id in killed:
            record = instance.get_run_by_id(run_id)
            assert record is not None
            assert record.status == dg.DagsterRunStatus.FAILURE
        slots = instance.event_log_storage.get_concurrency_info("gpu")
        assert (slots.active_slot_count, slots.pending_step_count) == (0, 0)


@pytest.mark.timeout(900)
def test_a_closed_terminal_ends_a_run_in_one_line_with_status_130(home: Path) -> None:
    run = plan(IMAGES)
    status, out, err = stop(home, run, "bench_run_results", 1, random.Random(7), signal.SIGHUP)
    assert (status, out) == (130, "")
    assert err == "flexy: interrupted: completed work is kept: run the same command to continue\n"
    with dg.DagsterInstance.get() as instance:
        assert open_runs(instance) == []
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
