"""What a killed worker, a killed daemon and a stopped Postgres leave behind: nothing the next tick does not mend."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from tests.support.service import Service, wait

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.slow(seconds=240)

IMAGES = 300
AT_ONCE = {"FLEXY_SCORE_NEW": "1", "FLEXY_WATCH_SECONDS": "5", "FLEXY_BATCH_SIZE": "100"}
"""The sensor's tick asks what the night asks, every five seconds."""

Services = Callable[..., Service]
Instances = Callable[[], dg.DagsterInstance]


def under_way(at: Service, dagster: dg.DagsterInstance) -> dg.DagsterRun:
    """The newest healing run, once some of its scores are committed and others are not."""

    def found() -> dg.DagsterRun | None:
        runs = [run for run in at.runs(dagster) if run.status == dg.DagsterRunStatus.STARTED]
        if not runs or at.scalar("SELECT to_regclass('image_embeddings') IS NULL"):
            return None
        embedded = at.scalar("SELECT count(*) FROM image_embeddings")
        return runs[-1] if 0 < embedded < IMAGES else None

    return wait(found, 90, at)


def whole(at: Service) -> bool:
    """Nothing is missing."""
    if at.scalar("SELECT count(*) FROM information_schema.columns WHERE column_name = 'hps_v2_score'") == 0:
        return False
    return not any(at.missing().values())


def nothing_twice(at: Service) -> None:
    assert at.scalar("SELECT count(*) FROM image_scores") == 4 * IMAGES
    assert at.attempts() == {1}, "a committed score was computed again"


def free(dagster: dg.DagsterInstance) -> bool:
    slots = dagster.event_log_storage.get_concurrency_info("gpu")
    return (slots.active_slot_count, slots.pending_step_count) == (0, 0)


@pytest.mark.timeout(300)
def test_after_the_worker_is_killed_the_next_tick_completes(service: Services, instance: Instances) -> None:
    at = service([IMAGES], 0, **AT_ONCE)
    at.start()
    dagster = instance()
    run = under_way(at, dagster)
    os.kill(at.worker(run), signal.SIGKILL)
    wait(lambda: whole(at), 120, at)
    nothing_twice(at)
    wait(lambda: all(r.is_finished for r in at.runs(dagster)), 60, at)
    killed, *others = at.runs(dagster)
    assert (killed.run_id, killed.status) == (run.run_id, dg.DagsterRunStatus.FAILURE)
    assert [r.status for r in others] == [dg.DagsterRunStatus.SUCCESS]
    assert wait(lambda: free(dagster), 60, at)


@pytest.mark.timeout(300)
def test_after_daemon_and_worker_are_killed_a_new_daemon_completes(service: Services, instance: Instances) -> None:
    at = service([IMAGES], 0, **AT_ONCE)
    at.start()
    dagster = instance()
    run = under_way(at, dagster)
    at.stop()  # as a machine that loses its power: nobody is left to record anything
    left_open = dagster.get_run_by_id(run.run_id)
    assert left_open is not None
    assert left_open.status == dg.DagsterRunStatus.STARTED
    assert not free(dagster)
    at.start()
    wait(lambda: whole(at), 120, at)
    nothing_twice(at)
    wait(lambda: all(r.is_finished for r in at.runs(dagster)), 60, at)
    assert [r.status.value for r in at.runs(dagster)] == ["FAILURE", "SUCCESS"]
    assert wait(lambda: free(dagster), 60, at)


@pytest.mark.timeout(300)
def test_after_the_daemon_alone_is_killed_nothing_is_done_twice(service: Services, instance: Instances) -> None:
    at = service([IMAGES], 0, **AT_ONCE)
    daemon = at.start()
    dagster = instance()
    under_way(at, dagster)
    daemon.kill()
    daemon.wait()
    at.start()
    wait(lambda: whole(at), 120, at)
    nothing_twice(at)
    wait(lambda: all(r.is_finished for r in at.runs(dagster)), 60, at)
    assert wait(lambda: free(dagster), 60, at)


@pytest.mark.timeout(400)
def test_after_twenty_seconds_without_postgres_nothing_is_missing_and_nothing_twice(
    service: Services, instance: Instances, postgres_server: PostgresServer
) -> None:
    at = service([IMAGES], 0, **AT_ONCE)
    at.start()
    under_way(at, instance())
    postgres_server.stop()
    time.sleep(20)
    postgres_server.start()
    at.database.engine.dispose()
    wait(lambda: whole(at), 180, at)
    nothing_twice(at)
    dagster = instance()
    wait(lambda: all(r.is_finished for r in at.runs(dagster)), 120, at)
    assert at.runs(dagster)[-1].status == dg.DagsterRunStatus.SUCCESS
    assert wait(lambda: free(dagster), 90, at)
