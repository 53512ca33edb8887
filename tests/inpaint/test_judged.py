"""The table holds a judge's answers and nothing else; only unanswered candidates are asked again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from benchmarks.labels import measure_killed_run
from flexy_assets.inpaint import assets
from flexy_assets.inpaint.import_tasks import DOWNLOAD_THREADS
from resources.mini.faces import write_face_example
from tests.conftest import Flexy
from tests.support import forked
from tests.support.judged import READINGS, Scores, check_judge_scores, expected_image_hashes, rows, scores
from tests.support.servers import FAULTS, FaceJudgeServer, running

pytestmark = pytest.mark.slow(seconds=60)

TASKS = 10
"""Most of them with a face to swap; the mini set refines none, so each of these has one candidate."""
JUDGE = "gemini/gemini-3.5-flash"


@pytest.fixture
def judge_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaceJudgeServer]:
    """A judge that is asked by Gemini's protocol."""
    with running(FaceJudgeServer(seed=5, hang_seconds=1.5)) as judge_server:
        monkeypatch.setenv("FLEXY_JUDGE", "gemini")
        monkeypatch.setenv("FLEXY_JUDGE_URL", judge_server.url)
        monkeypatch.setenv("FLEXY_JUDGE_TIMEOUT", "1")
        yield judge_server


@pytest.fixture
def imported(flexy: Flexy, home: Path, tmp_path: Path) -> None:
    """Tasks of the drawn world."""
    assert flexy("inpaint", "import", str(write_face_example(tmp_path / "example", TASKS, seed=1))).exit_code == 0


def document(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def values(there: Scores) -> dict[tuple[str, str], Any]:
    """What was scored, without what follows from all that is."""
    return {key: row for key, row in there.items() if row["value"] is not None and key[1] != "potential"}


@pytest.mark.usefixtures("imported")
def test_a_failing_judge_leaves_no_invented_score_and_the_next_run_completes_it(
    flexy: Flexy, home: Path, judge_server: FaceJudgeServer
) -> None:
    judge_server.fault_rate = 0.3
    first = document(flexy("inpaint", "run", "--json"))
    before = check_judge_scores(home, judge_server, JUDGE)
    assert not before.wrong and before.answered and before.unanswered, "some were answered, some were not"
    assert judge_server.faults.keys() == set(FAULTS)
    assert first["unanswered"] == len(before.unanswered)
    scored, said, calls = values(scores(home)), sum(map(len, judge_server.answers.values())), judge_server.calls

    judge_server.fault_rate = 0
    second = document(flexy("inpaint", "run", "--json"))
    after = check_judge_scores(home, judge_server, JUDGE)
    assert after.answered == before.answered | before.unanswered
    assert judge_server.calls - calls == READINGS * len(after.answered) - said, (
        "what was missing was asked for, and no more"
    )
    assert {key: row for key, row in values(scores(home)).items() if key in scored} == scored
    assert set(judge_server.answers) == set(expected_image_hashes(home).values())
    assert second["unanswered"] == 0 and len(second["selected"]) + len(second["left"]) == TASKS
    assert all(reason.startswith("no face in the scene") for reason in second["left"].values())


def test_after_three_kills_no_stored_result_is_requested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in the import, once among swaps and once among judgements."""
    monkeypatch.setattr("benchmarks.labels.subprocess", forked)
    found = measure_killed_run(10, tmp_path)
    assert (found["tasks imported"], found["lost"], found["scores that are not the judge's"]) == (10, 0, 0)
    again = {what: count for what, count in found.items() if "again" in what or "repeated" in what}
    assert len(again) == 3 and set(again.values()) == {0}
    assert found["images served twice, in transit at the kill"] <= DOWNLOAD_THREADS
    assert found["answers given twice, in transit at the kill"] <= 1


def test_a_named_task_is_inpainted_alone_and_no_partition_is_complete(flexy: Flexy, home: Path, tmp_path: Path) -> None:
    assert flexy("inpaint", "import", str(write_face_example(tmp_path / "example", 3, seed=1))).exit_code == 0
    names = [row["name"] for row in rows(home, "SELECT name FROM label_tasks ORDER BY position")]
    answer = document(flexy("inpaint", "run", "--task-id", names[1], "--json"))
    assert answer["tasks"] == 1 and [one["id"] for one in answer["selected"]] + [*answer["left"]] == [names[1]]
    query = "SELECT task.name FROM face_swaps JOIN label_tasks task ON task.id = face_swaps.task"
    assert {row["name"] for row in rows(home, query)} == {names[1]}
    with dg.DagsterInstance.get() as instance:
        assert instance.get_materialized_partitions(assets.inpaint_selections.key) == set()
    assert document(flexy("inpaint", "run", "--json"))["tasks"] == 3
    with dg.DagsterInstance.get() as instance:
        assert instance.get_materialized_partitions(assets.inpaint_selections.key) == {"14514_0000"}
