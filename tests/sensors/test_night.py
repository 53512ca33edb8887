"""One night, for real: the daemon's own tick finds what is missing, one run fills it, the next tick finds nothing."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg
import pytest

from tests.support.service import BACKFILL_JOB, Service, nightly_ticks, wait

pytestmark = pytest.mark.slow(seconds=100)

GOES, SCORED = (60, 40, 14, 86), 186
"""FlexyFace's four goes and what was scored of them, a tenth of each."""


@pytest.mark.timeout(420)
def test_the_nightly_backfill_computes_exactly_what_is_missing_and_the_next_finds_nothing(
    service: Callable[..., Service], instance: Callable[[], dg.DagsterInstance]
) -> None:
    at = service(GOES, SCORED, FLEXY_NIGHTLY="* * * * *")
    before = at.table()
    at.start()
    dagster = instance()
    (run,) = wait(lambda: [r for r in at.runs(dagster) if r.is_finished], 150, at)
    assert run.status == dg.DagsterRunStatus.SUCCESS, at.log()

    after = at.table()
    changed = {"aes_v2_score": 200, "hps_v2_score": 200, "clip_score": 14, "aesthetic_score": 14}
    changed |= {"metrics_status": 14, "metrics_updated_at": 14}
    for name in next(iter(before.values())):
        values = [(row[name], after[key][name]) for key, row in before.items()]
        assert sum(old != new for old, new in values) == changed.pop(name, 0), name
        if name != "metrics_status":
            assert all(new == old for old, new in values if old is not None), f"{name}: a value that was there changed"
    assert changed == {"aes_v2_score": 200, "hps_v2_score": 200}, "the columns that were not there"
    assert at.missing() == dict.fromkeys(at.missing(), 0)
    assert at.scalar("SELECT count(*) FROM image_scores") == 14 + 14 + 200 + 200
    assert at.attempts() == {1}

    # The next minute's tick: nothing is missing, and nothing is begun.
    number = len(nightly_ticks(dagster))
    last = wait(lambda: nightly_ticks(dagster)[number:], 90, at)[-1]
    assert (last.status.value, last.skip_reason) == ("SKIPPED", "no scores are missing")
    assert [r.run_id for r in at.runs(dagster)] == [run.run_id]
    (results,) = wait(lambda: [r for r in at.runs(dagster, "results") if r.is_finished], 90, at)
    assert results.status == dg.DagsterRunStatus.SUCCESS
    assert (at.home / "assets" / "sweep.csv").read_text().count("\n") == 201
    assert BACKFILL_JOB not in {r.job_name for r in dagster.get_runs() if not r.is_finished}
