"""The benchmark for a GPU works in its reduced form, and needs no more packages than a GPU machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

WITHOUT = """
import sys
ABSENT = {"polars", "plotly", "alembic", "matplotlib", "sklearn", "jinja2", "starlette", "insightface", "onnxruntime"}
ABSENT |= {"click", "psycopg2", "pytest"}

class Filtered:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        absent = top in ABSENT or top.startswith("dagster")
        return None if absent else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Filtered(finder) for finder in sys.meta_path]
from benchmarks import gpu
gpu.main()
"""


pytestmark = pytest.mark.slow(seconds=60)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    # No GPU, even where there is one: the full form takes minutes there.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", WITHOUT, "--explore", "--out", str(out)]
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def result(found: dict[str, Any], section: str) -> dict[str, Any]:
    assert found["sections"][section]["status"] == "ok"
    return found["sections"][section]["result"]


def test_every_goal_that_a_cpu_can_meet_is_met(found: dict[str, Any]) -> None:
    assert found["goals"] and all(goal["met"] for goal in found["goals"])
    assert not any(words in goal["goal"] for goal in found["goals"] for words in ("MFU", "one by one", "against fp32"))
    assert not found["machine"]["full_size"] and found["peak_tflops"]["half"] > 0


def test_every_score_is_committed_whatever_the_batch_size(found: dict[str, Any]) -> None:
    scores = result(found, "scores")
    runs = scores["runs"]
    assert not scores["skipped"] and len(runs) == 7
    assert all(
        run["committed"] == run["asked"] == scores["images"] * (1 if "alone" in n else 4) for n, run in runs.items()
    )
    assert runs["all four, batch size 4"]["batch_size"] == 4
    for run in runs.values():
        assert 0 < run["forward_share"] < 1 and run["image forward"] > 0 and run["load"] > 0
        parts = ("load", "wait for pictures", "image forward", "stack and transfer", "text calls", "rest")
        assert sum(run[part] for part in parts) == pytest.approx(run["wall_s"])
        assert all(run[part] >= 0 for part in parts)
    assert {"read and decode (threads)", "prepare for HPS (threads)"} <= runs["all four"]["stages_s"].keys()


def test_half_precision_differs_from_full_and_not_by_much(found: dict[str, Any]) -> None:
    rows = result(found, "parity")["differences"]
    assert len(rows) == 8
    assert all(0 < row["mean"] <= row["largest"] < 0.1 and row["spread_of_fp32"] > 0.01 for row in rows)


def test_batches_make_the_images_that_single_calls_make(found: dict[str, Any]) -> None:
    for made in result(found, "generation").values():
        assert made["gflop_an_image"] > 0 and made["deviation"] > 0
        assert all(row["images_a_second"] > 0 and row["largest_difference"] <= 2 for row in made["by_batch"].values())


def test_a_call_that_runs_out_of_memory_is_halved_until_it_fits(found: dict[str, Any]) -> None:
    memory = result(found, "memory")
    assert memory["placement"] == {name: name for name in ("resident", "offload", "sequential")}
    (halving,) = (row for name, row in memory.items() if "halved" in name)
    assert halving["calls"] == [8, 4, 2, 2, 2, 2] and halving["ended_at"] == 2


def test_the_slot_holds_six_models_one_after_another(found: dict[str, Any]) -> None:
    switches = result(found, "slot")["switches"]
    assert [row["model"] for row in switches] == ["clip", "hps", "sdxl", "clip", "sd3", "hps"]
    assert all(row["own_mb"] > 0 for row in switches)


def test_both_searches_run_the_same_number_of_steps(found: dict[str, Any]) -> None:
    edits = result(found, "edits")
    assert {name: row["nfe"] for name, row in edits["methods"].items()} == dict.fromkeys(
        ("eacps", "ttflux"), edits["budget"]
    )
    assert edits["methods"]["eacps"]["stages"] == ["global", "local"]


def test_variants_that_fail_leave_the_others_alone(found: dict[str, Any]) -> None:
    variants = result(found, "explore")
    assert "Error" in variants["clip tower, CUDNN_ATTENTION, batch size 2"]
    assert sum("Error" not in value for value in variants.values()) > 20
