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

pytestmark = pytest.mark.slow(seconds=100)

IMAGES = 320
AT_ONCE = {"FLEXY_SCORE_NEW": "1", "FLEXY_WATCH_SECONDS": "5", "FLEXY_BATCH_SIZE": "100"}
"""The sensor's tick asks what the night asks, every five seconds."""

Services = Callable[..., Service]
Instances = Callable[[], dg.DagsterInstance]


def done(at: Service) -> int:
    """How many embeddings and scores are committed."""
    if at.scalar("SELECT to_regclass('image_embeddings') IS NULL"):
        return 0
    return at.scalar("SELECT (SELECT count(*) FROM image_embeddings) + (SELECT count(*) FROM image_scores)")


def under_way(at: Service, dagster: dg.DagsterInstance, before: int) -> dg.DagsterRun:
    """The newest backfill, once it has committed more than what was there before; something is still missing."""

    def found() -> dg.DagsterRun | None:
        runs = [run for run in at.runs(dagster) if run.status == dg.DagsterRunStatus.STARTED]
        return runs[-1] if runs and done(at) > before else None

    run = wait(found, 120, at)
    assert not whole(at), "it ended before it could be disturbed"
    return run


def whole(at: Service) -> bool:
    """Nothing is missing."""
    if at.scalar("SELECT count(*) FROM information_schema.columns WHERE column_name = 'hps_v2_score'") == 0:
        return False
    return not any(at.missing().values())


def is_free(dagster: dg.DagsterInstance) -> bool:
    slots = dagster.event_log_storage.get_concurrency_info("gpu")
    return (slots.active_slot_count, slots.pending_step_count) == (0, 0)


@pytest.mark.timeout(400)
def test_after_one_outage_upon_the_other_nothing_is_missing_and_nothing_was_done_twice(
    service: Services, instance: Instances, postgres_server: PostgresServer
) -> None:
    at = service([IMAGES], 0, **AT_ONCE)
    at.start()
    dagster = instance()

    killed = under_way(at, dagster, 0)
    os.kill(at.worker(killed), signal.SIGKILL)

    # The next tick's run goes on. Then nobody is left to record anything, as when a machine loses its power.
    cut = under_way(at, dagster, done(at))
    at.stop()
    left_open = dagster.get_run_by_id(cut.run_id)
    assert left_open is not None and left_open.status == dg.DagsterRunStatus.STARTED
    assert not is_free(dagster)

    daemon = at.start()
    under_way(at, dagster, done(at))
    postgres_server.stop()
    time.sleep(20)
    postgres_server.start()
    at.database.engine.dispose()

    # A daemon that is killed alone leaves its worker at work.
    under_way(at, dagster, done(at))
    daemon.kill()
    daemon.wait()
    at.start()

    wait(lambda: whole(at), 180, at)
    assert at.scalar("SELECT count(*) FROM image_scores") == 4 * IMAGES
    assert at.attempts() == {1}, "a committed score was computed again"
    wait(lambda: all(run.is_finished for run in at.runs(dagster)), 120, at)
    states = {run.run_id: run.status for run in at.runs(dagster)}
    assert states[killed.run_id] == states[cut.run_id] == dg.DagsterRunStatus.FAILURE
    assert at.runs(dagster)[-1].status == dg.DagsterRunStatus.SUCCESS
    assert wait(lambda: is_free(dagster), 90, at)
