"""Recorded candidates are chosen among again: as they were at the published weights, and with any others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flexy_assets.cli.app import main
from flexy_assets.edits.recorded_candidates import RECORDED_CANDIDATES_SCHEMA, read_recorded_candidates
from flexy_assets.edits.search.selectors import edit_potential
from flexy_assets.edits.select import WINNERS_SCHEMA, recorded_winners

Select = Callable[..., Result]


@pytest.fixture
def select() -> Select:
    return lambda *arguments: CliRunner().invoke(main, ["select", *map(str, arguments)], prog_name="flexy")


def record(**changes: Any) -> dict[str, Any]:
    """A line as the published code writes it."""
    return {
        "phase": "stage1",
        "id": "bear",
        "prompt": "make the bear wear a hat",
        "image_path": "bear.png",
        "seed": 0,
        "model_id": "Qwen/Qwen-Image-Edit",
        "num_inference_steps": 20,
        "true_cfg_scale": 4.0,
        "clip_prompt_following": 26.0,
        "clip_consistency": 0.9,
        "lpips": 0.3,
        "potential": 26.0 + 10 * 0.9 - 3 * 0.3,
    } | changes


def published(ids: int = 60) -> list[dict[str, Any]]:
    """What the published code would have recorded: four seeds, two variants each of the best two."""
    rng, lines = np.random.default_rng(0), []
    for number in range(ids):

        def candidate(seed: int, phase: str, number: int = number) -> dict[str, Any]:
            pf, cons, lpips = 100 * rng.normal(0.26, 0.015), rng.normal(0.9, 0.05), rng.normal(0.35, 0.1)
            return record(
                id=f"edit {number}",
                phase=phase,
                seed=seed,
                clip_prompt_following=pf,
                clip_consistency=cons,
                lpips=lpips,
                potential=pf + 10 * cons - 3 * lpips,
            )

        stage1 = [candidate(number * 4 + i, "stage1") for i in range(4)]
        stage1.sort(key=lambda c: c["potential"], reverse=True)
        stage2 = [
            candidate((parent["seed"] + 1) * 100000 + j, "stage2") | {"parent_seed": parent["seed"]}
            for parent in stage1[:2]
            for j in range(2)
        ]
        lines += [*stage1, *stage2]
    return lines


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    file = folder / "all_candidates.jsonl"
    file.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines) + "\n")
    return file


def answer(result: Result, status: int = 0) -> dict[str, Any]:
    assert result.exit_code == status, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def by_hand(lines: list[dict[str, Any]], alpha: float, beta: float) -> dict[str, dict[str, Any]]:
    best: dict[str, dict[str, Any]] = {}
    for each in lines:
        value = each["clip_prompt_following"] + alpha * each["clip_consistency"] - beta * each["lpips"]
        if each["id"] not in best or value > best[each["id"]]["potential"]:
            best[each["id"]] = {name: each[name] for name in ("id", "seed", "phase")} | {"potential": value}
    return best


# Choosing


def test_the_published_weights_select_the_published_winners(select: Select, tmp_path: Path) -> None:
    lines = published()
    found = answer(select(write(tmp_path, *lines), "--json"))
    assert found.keys() == {"winners", "alternatives", "disagreements", "notes", "left_out"}
    assert [winner["id"] for winner in found["winners"]] == [f"edit {number}" for number in range(60)]
    recorded = {(each["id"], each["seed"]): each["potential"] for each in lines}
    for winner in found["winners"]:
        assert winner.keys() == {"id", "seed", "phase", "potential"}
        best = max((each for each in lines if each["id"] == winner["id"]), key=lambda each: each["potential"])
        assert (winner["seed"], winner["phase"]) == (best["seed"], best["phase"])
        assert abs(winner["potential"] - recorded[winner["id"], winner["seed"]]) <= 1e-9
    assert {winner["phase"] for winner in found["winners"]} == {"stage1", "stage2"}
    assert found["disagreements"] == found["notes"] == found["left_out"] == found["alternatives"] == []


@pytest.mark.parametrize(("alpha", "beta"), [(10, 3), (0, 0), (100, 0), (0, 50), (-10, -3), (2.5, 1e3)])
def test_any_weights_choose_by_their_own_sum(select: Select, tmp_path: Path, alpha: float, beta: float) -> None:
    lines = published()
    found = answer(select(write(tmp_path, *lines), "--alpha", alpha, "--beta", beta, "--json"))
    by_id = by_hand(lines, alpha, beta)
    for winner in found["winners"]:
        expected = by_id[winner["id"]]
        assert winner["potential"] == pytest.approx(expected["potential"], abs=1e-9)
        assert (winner["seed"], winner["phase"]) == (expected["seed"], expected["phase"])


def test_each_alternative_says_how_many_winners_change(select: Select, tmp_path: Path) -> None:
    lines = published()
    asked = ["--alternative", "alpha=100", "--alternative", "alpha=0, beta=50", "--alternative", "alpha=10,beta=3"]
    file = write(tmp_path, *lines)
    found = answer(select(file, *asked, "--json"))["alternatives"]
    base = by_hand(lines, 10, 3)
    for change, (alpha, beta) in zip(found, ((100, 3), (0, 50), (10, 3)), strict=True):
        other = by_hand(lines, alpha, beta)
        ids = [each for each in base if base[each]["seed"] != other[each]["seed"]]
        assert change == {"alpha": alpha, "beta": beta, "changed": len(ids), "ids": ids}
    assert found[0]["changed"] > 0 == found[2]["changed"]
    shown = select(file, *asked)
    assert shown.exit_code == 0 and f"by pf + 100·cons − 3·lpips: {found[0]['changed']} winners changed" in shown.stdout


def test_a_winner_of_the_same_seed_in_another_phase_is_another(select: Select, tmp_path: Path) -> None:
    file = write(tmp_path, record(), record(phase="stage2", clip_consistency=0.8, lpips=0.0))
    (change,) = answer(select(file, "--alternative", "beta=10", "--json"))["alternatives"]
    assert change == {"alpha": 10, "beta": 10, "changed": 1, "ids": ["bear"]}


def test_of_equal_ones_the_first_recorded_wins(select: Select, tmp_path: Path) -> None:
    lines = [record(seed=9), record(seed=3), record(id="hat", seed=5, lpips=0.2), record(id="hat", seed=4, lpips=0.2)]
    found = answer(select(write(tmp_path, *lines), "--json"))
    assert [(winner["id"], winner["seed"]) for winner in found["winners"]] == [("bear", 9), ("hat", 5)]


def test_ids_may_be_numbers_and_phases_may_share_a_seed(select: Select, tmp_path: Path) -> None:
    lines = [record(id=7), record(id=7, phase="stage2", lpips=0.1), record(id="8", potential=None)]
    found = answer(select(write(tmp_path, *lines, "", "  "), "--json"))
    assert [(winner["id"], winner["phase"]) for winner in found["winners"]] == [("7", "stage2"), ("8", "stage1")]


def test_the_frames_are_as_declared(tmp_path: Path) -> None:
    candidates, skipped = read_recorded_candidates(write(tmp_path, *published(3)))
    assert dict(candidates.schema) == RECORDED_CANDIDATES_SCHEMA and candidates.height == 24 and not skipped
    assert dict(recorded_winners(candidates, edit_potential()).schema) == WINNERS_SCHEMA
    nothing, skipped = read_recorded_candidates(write(tmp_path, "{}"))
    assert dict(nothing.schema) == RECORDED_CANDIDATES_SCHEMA and nothing.is_empty() and len(skipped) == 1


# What a person reads


def test_the_text_has_every_winner(select: Select, tmp_path: Path) -> None:
    result = select(write(tmp_path, *published(5)))
    assert result.exit_code == 0 and result.stderr == ""
    heading, *rows, last = result.stdout.splitlines()
    assert heading.split() == ["id", "seed", "phase", "potential"]
    assert [row.split()[:2] for row in rows] == [["edit", str(number)] for number in range(5)]
    assert last == "5 winners of 40 candidates by pf + 10·cons − 3·lpips"


def test_a_recorded_potential_that_is_not_the_published_sum_is_reported(select: Select, tmp_path: Path) -> None:
    file = write(tmp_path, record(), record(seed=1, potential=34.1000001), record(seed=2, potential=34.1 + 1e-12))
    found = answer(select(file, "--json"))
    (apart,) = found["disagreements"]
    assert apart["line"] == 2 and apart["recorded"] == 34.1000001
    assert apart["potential"] == pytest.approx(34.1)
    assert "1 recorded potentials differ from pf + 10·cons − 3·lpips (line 2" in select(file).stdout


def test_prompt_following_as_a_cosine_is_warned_of_and_taken_as_recorded(select: Select, tmp_path: Path) -> None:
    lines = [record(seed=seed, clip_prompt_following=0.2 + seed / 100, potential=None) for seed in range(4)]
    found = answer(select(write(tmp_path, *lines), "--json"))
    assert "the spread of a plain cosine vanishes" in found["notes"][0]
    assert found["winners"][0]["potential"] == pytest.approx(0.23 + 9 - 0.9)
    assert "note: every clip_prompt_following is at most 1" in select(write(tmp_path, *lines)).stdout
    assert not answer(select(write(tmp_path, *lines, record(seed=9)), "--json"))["notes"]


# Bad input


HOSTILE = [
    (record(seed=1, clip_prompt_following=float("nan")), "clip_prompt_following is not finite"),
    (record(seed=1, lpips=float("inf")), "lpips is not finite"),
    (record(seed=1, clip_consistency=float("-inf")), "clip_consistency is not finite"),
    (json.dumps(record(seed=1)).replace("26.0", "1e999"), "clip_prompt_following is not finite"),
    (record(seed=1, clip_prompt_following="26.0"), "clip_prompt_following is not a number"),
    (record(seed=1, lpips=True), "lpips is not a number"),
    (record(seed=1, lpips=[0.3]), "lpips is not a number"),
    (record(seed=1, clip_consistency=1e300), "clip_consistency is not from -1e+06 to 1e+06"),
    (json.dumps(record(seed=1)).replace("26.0", "9" * 400), "clip_prompt_following is not from -1e+06 to 1e+06"),
    (record(seed=1, lpips=None), "it has no lpips"),
    (record(seed=1, potential=float("nan")), "potential is not finite"),
    (record(seed=1, potential=10**400), "potential is not from -1e+15 to 1e+15"),
    (record(seed=1, potential="high"), "potential is not a number"),
    ({key: value for key, value in record(seed=1).items() if key != "phase"}, "it has no phase"),
    (record(seed=None), "it has no seed"),
    (record(seed="1"), "seed is not an integer"),
    (record(seed=1.5), "seed is not an integer"),
    (record(seed=-1), "seed is not an integer"),
    (record(seed=2**63), "seed is not an integer"),
    (record(seed=True), "seed is not an integer"),
    (record(id=None), "it has no id"),
    (record(phase=1), "phase is not text"),
    (record(), "duplicate of line 1: id 'bear', stage1, seed 0"),
    (record(seed=1, prompt="x" * 1_000_000), "it is longer than 1000000 bytes"),
    ('{"id": "bear", ', "it is not JSON"),
    ("26.0", "it is not a JSON object"),
]


@pytest.mark.parametrize(("bad", "reason"), HOSTILE)
def test_a_bad_line_is_named_and_the_rest_is_done(
    select: Select, tmp_path: Path, bad: dict[str, Any] | str, reason: str
) -> None:
    file = write(tmp_path, record(), bad, record(id="hat"))
    result = select(file)
    assert result.exit_code == 1
    assert "2 winners of 2 candidates" in result.stdout
    (complaint,) = result.stderr.splitlines()
    assert complaint.startswith(f"flexy: {file}: 1 line skipped: line 2: ") and reason in complaint
    found = answer(select(file, "--json"), status=1)
    assert [winner["id"] for winner in found["winners"]] == ["bear", "hat"]
    (left,) = found["left_out"]
    assert left["line"] == 2 and reason in left["reason"]


def test_a_file_of_bad_lines_alone_has_no_winners(select: Select, tmp_path: Path) -> None:
    file = write(tmp_path, *["nonsense"] * 5)
    found = answer(select(file, "--json"), status=1)
    assert found["winners"] == [] and len(found["left_out"]) == 5
    assert select(file).stderr.strip().endswith("line 3: it is not JSON; …")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--alpha", "ten"], "invalid alpha 'ten'"),
        (["--beta", "nan"], "invalid beta 'nan'"),
        (["--alpha", "1e9"], "invalid alpha '1e9'"),
        (["--alternative", "alpha=x"], "invalid alpha 'x'"),
        (["--alternative", "5"], "invalid alternative '5': must be as in alpha=5"),
        (["--alternative", "gamma=5"], "invalid alternative 'gamma=5'"),
        (["--alternative", "alpha="], "invalid alternative 'alpha='"),
    ],
)
def test_weights_that_are_no_numbers_are_bad_input(
    select: Select, tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = select(write(tmp_path, record()), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert words in line


def test_a_file_that_is_not_there_or_empty_is_bad_input(select: Select, tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.jsonl", "No such file"), (write(tmp_path), "no candidates in")):
        result = select(path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr and str(path) in result.stderr


def test_the_modules_need_neither_dagster_nor_models() -> None:
    names = (
        "comparison",
        "recorded_candidates",
        "select",
        "tasks",
        "search.eacps",
        "search.ttflux",
        "search.selectors",
    )
    code = (
        f"import sys, {', '.join(f'flexy_assets.edits.{name}' for name in names)};"
        "print([m for m in ('dagster', 'torch', 'diffusers', 'transformers', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
