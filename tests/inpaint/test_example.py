"""The shipped example goes through the whole lineage by the documented commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexy_assets.edits.tasks import read_tasks
from tests.conftest import Flexy
from tests.support.tables import described_otherwise

pytestmark = pytest.mark.slow(seconds=10)


def test_every_task_of_the_example_has_a_winner_or_an_error(flexy: Flexy, home: Path, tmp_path: Path) -> None:
    drawn = flexy("example", "faces", str(tmp_path / "faces"), "--tasks", "6", "--json")
    file = json.loads(drawn.stdout)["file"]
    imported = json.loads(flexy("inpaint", "import", file, "--json").stdout)
    assert (imported["tasks"], imported["skipped"]) == (6, [])
    run = flexy("inpaint", "run", "--json")
    answer = json.loads(run.stdout)
    assert run.exit_code == 0, run.stderr
    chosen = {each["id"] for each in answer["selected"]}
    assert len(chosen) >= 4 and all(each["potential"] > 0 for each in answer["selected"])
    assert not chosen & answer["left"].keys() and len(chosen | answer["left"].keys()) == 6
    assert all(answer["left"].values())
    again = json.loads(flexy("inpaint", "run", "--json").stdout)
    assert again["selected"] == answer["selected"]
    reviewed = json.loads(flexy("inpaint", "review", "--json").stdout)
    assert reviewed["agreement"] == [] and "nothing was sent for review yet" in reviewed["notes"]
    assert described_otherwise(home / "assets") == []


def test_an_example_is_written_beside_nothing(flexy: Flexy, tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    assert flexy("example", "edits", str(folder), "--tasks", "3").exit_code == 0
    tasks, problems = read_tasks(folder / "edits.jsonl")
    assert len(tasks) == 3 and not problems
    before = {path: path.read_bytes() for path in folder.iterdir()}
    again = flexy("example", "edits", str(folder), "--seed", "1")
    assert again.exit_code == 2 and "exists and is not empty" in again.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
