"""`flexy compare`, from an edit set to the report."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resources.mini.edits import write_edit_example
from tests.conftest import Flexy
from tests.support import forked
from tests.support.tables import described_otherwise

pytestmark = pytest.mark.slow(seconds=60)

CHEAP = ("--steps", "4", "--budget", "2")
"""Two denoises of four steps for each task and method."""


@pytest.fixture
def edit_set(tmp_path: Path) -> Path:
    return write_edit_example(tmp_path / "set", 4, seed=3)


def document(result: Any) -> dict[str, Any]:
    return json.loads(result.stdout)


def test_a_set_is_compared_and_its_bad_lines_are_named(
    flexy: Flexy, home: Path, edit_set: Path, tmp_path: Path
) -> None:
    (edit_set.parent / "torn.png").write_bytes(b"\x89PNG")
    good = edit_set.read_text().splitlines()
    bad = [
        "",
        '{"id": "0001", "image_path": "0001.png", "prompt": "again"}',
        '{"id": "x", "image_path": "nowhere.png", "prompt": "a red circle"}',
        '{"id": "y", "image_path": "torn.png", "prompt": "a red circle"}',
        '{"id": "z", "image_path": "0001.png", "prompt": " "}',
        '{"id": "o", "image_path": "../../etc/passwd", "prompt": "a red circle"}',
        "not JSON",
    ]
    edit_set.write_text("\n".join([*good[:2], *bad, *good[2:]]) + "\n")
    out = tmp_path / "out"
    result = flexy("compare", "--dataset", str(edit_set), "--out", str(out), "--choose", "potential", *CHEAP, "--json")
    assert result.exit_code == 1, "lines were skipped"
    assert result.stderr.count("\n") == 1 and "6 lines skipped" in result.stderr
    answer = document(result)
    assert answer["tasks"] == 4 and len(answer["left_out"]) == 6
    assert [line.split(":")[0].rpartition(" ")[2] for line in answer["left_out"]] == ["4", "5", "6", "7", "8", "9"]
    assert answer["denoising_steps_run"] == 4 * 2 * 8
    assert {(row["least_nfe"], row["most_nfe"]) for row in answer["spent"]} == {(8, 8)}
    assert len(answer["winners"]) == 8
    assert {row["metric"] for row in answer["metrics"]} >= {"truth", "hps_v2_score", "aes_v2_score", "potential", "pf"}
    assert sorted(path.name for path in out.iterdir()) == [
        "eacps_2.jsonl",
        "edit_report.html",
        "ttflux_2.jsonl",
        "winners",
    ]
    assert len(list((out / "winners").iterdir())) == 8
    assert Image.open(next((out / "winners").iterdir())).size == (64, 64)
    assert described_otherwise(home / "assets") == []
    # What was recorded gives the same winners again.
    again = document(flexy("select", str(out / "eacps_2.jsonl"), "--json"))
    assert again["left_out"] == [] and again["disagreements"] == []
    winners = {row["id"]: row["potential"] for row in answer["winners"] if row["method"] == "eacps"}
    assert {row["id"]: row["potential"] for row in again["winners"]} == pytest.approx(winners, abs=1e-9)


def test_one_image_and_then_nothing_to_do(flexy: Flexy, edit_set: Path) -> None:
    task = json.loads(edit_set.read_text().splitlines()[0])
    arguments = ("compare", "--image", str(edit_set.parent / task["image_path"]), "--prompt", task["prompt"], *CHEAP)
    first = flexy(*arguments)
    assert first.exit_code == 0, first.stderr
    assert "1 task, 16 new denoising steps" in first.stdout
    second = document(flexy(*arguments, "--json"))
    assert second["denoising_steps_run"] == 0 and second["tasks"] == 1
    assert Path(second["report"]).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give either --image with --prompt, or --dataset"),
        (("--image", "a.png", "--dataset", "b.jsonl"), "give either"),
        (("--image", "a.png"), "give an image and an instruction"),
        (("--dataset", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--image", "a.png", "--prompt", "x", "--editor", "none"), "unknown editor 'none'"),
        (("--image", "a.png", "--prompt", "x", "--budget", "0"), "invalid budgets [0]"),
        (("--image", "a.png", "--prompt", "x", "--alpha", "nan"), "invalid alpha nan"),
        (("--image", "a.png", "--prompt", "x", "--ttflux", "best"), "is not one of 'random', 'zero_order'"),
    ],
)
def test_an_invalid_option_is_one_line_and_leaves_no_trace(
    flexy: Flexy, home: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    result = flexy("compare", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr and result.stderr.count("\n") == 1
    assert not (home / "dagster").exists()


def test_a_killed_comparison_generates_nothing_twice(flexy: Flexy, home: Path, tmp_path: Path) -> None:
    """Killed twice, once while candidates are made and once between the methods."""
    file = write_edit_example(tmp_path / "set", 3, seed=5)
    command = ["compare", "--dataset", str(file), "--steps", "8", "--budget", "3", "--json"]
    for rows in (3, 14):
        process = forked.Popen(
            [sys.executable, "-m", "flexy_assets.cli.app", *command],
            stdout=forked.PIPE,
        )
        try:
            while _count(home) < rows:
                assert process.poll() is None, "it ended before it was killed"
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.communicate()
    before, files = _count(home), _files(home)
    answer = document(flexy(*command))
    whole = 3 * 2 * 3 * 8
    assert sum(row["nfe"] for row in answer["spent"]) == whole
    assert 0 < answer["denoising_steps_run"] < whole
    after = _files(home)
    committed = _paths(home, before)
    assert committed and {path: files[path] for path in committed} == {path: after[path] for path in committed}
    assert flexy(*command).exit_code == 0 and _files(home) == after


def _count(home: Path) -> int:
    return len(_paths(home))


def _paths(home: Path, first: int = -1) -> list[str]:
    """The pictures of the first candidates in the table; none before there is one."""
    if not (home / "flexy.sqlite").exists():
        return []
    query = "SELECT image_path FROM edit_candidates ORDER BY created_at, rowid LIMIT ?"
    with closing(sqlite3.connect(f"file:{home / 'flexy.sqlite'}?mode=ro", uri=True, timeout=60)) as connection:
        try:
            return [path for (path,) in connection.execute(query, (first,))]
        except sqlite3.OperationalError:
            return []


def _files(home: Path) -> dict[str, int]:
    root = home / "images"
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in (root / "edits").rglob("*.png") if p.name[0] != "."}
