"""A comparison's figures: right by independent arithmetic, honest about what few tasks cannot tell."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import beta

from flexy_assets.edits.comparison import (
    COMPARISON_SCHEMA,
    MEAN_SCORES_SCHEMA,
    VALUES_SCHEMA,
    bootstrap_interval,
    compare_methods,
    mean_scores,
)
from resources.metrics.edits import METRICS

SELECTING = [metric for metric in METRICS.values() if metric.role == "selecting"]
TRUTH = replace(METRICS["truth"], tie=0.01)
LPIPS = METRICS["lpips"]


def frame(*rows: tuple[str, str, int, str, float | None]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=VALUES_SCHEMA, orient="row")


def values(
    ours: list[float | None], theirs: list[float | None], metric: str = "truth", budget: int = 160
) -> pl.DataFrame:
    return pl.concat(
        frame(*((f"task {task:03d}", method, budget, metric, value) for task, value in enumerate(column)))
        for method, column in (("eacps", ours), ("ttflux", theirs))
    )


def only(compared: pl.DataFrame) -> dict[str, Any]:
    assert compared.schema == pl.Schema(COMPARISON_SCHEMA)
    assert compared.height == 1
    return compared.row(0, named=True)


def test_wins_ties_losses_and_the_mean_difference_are_counted_task_by_task() -> None:
    row = only(compare_methods(values([0.9, 0.5, 0.505, 0.2], [0.5, 0.4, 0.5, 0.3]), [TRUTH], "eacps", "ttflux"))
    assert (row["n"], row["wins"], row["ties"], row["losses"], row["left_out"]) == (4, 2, 1, 1, 0)
    assert row["gain"] == pytest.approx((0.4 + 0.1 + 0.005 - 0.1) / 4)
    assert row["win_rate"] == pytest.approx(2 / 3)
    assert (row["role"], row["budget"], row["rival_budget"], row["note"]) == ("ground truth", 160, 160, None)
    mirrored = only(compare_methods(values([0.9, 0.5, 0.505, 0.2], [0.5, 0.4, 0.5, 0.3]), [TRUTH], "ttflux", "eacps"))
    assert (mirrored["wins"], mirrored["losses"]) == (1, 2)
    assert mirrored["gain"] == -row["gain"]
    assert (mirrored["gain_low"], mirrored["gain_high"]) == pytest.approx(
        (-row["gain_high"], -row["gain_low"]), abs=0.02
    )


def test_where_lower_is_better_less_is_a_gain() -> None:
    row = only(compare_methods(values([0.1, 0.2, 0.3], [0.3, 0.3, 0.2], "lpips"), [LPIPS], "eacps", "ttflux"))
    assert (row["wins"], row["losses"]) == (2, 1)
    assert row["gain"] == pytest.approx((0.2 + 0.1 - 0.1) / 3)


def test_a_task_without_a_value_is_left_out_for_that_metric_and_counted() -> None:
    ours: list[float | None] = [1.0, None, float("nan"), 1.0, 1.0]
    table = pl.concat(
        [
            values(ours, [0.0, 0.0, 0.0, float("inf"), 0.0]),
            values([0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2], "lpips"),
            frame(("only here", "eacps", 160, "lpips", 0.4)),
        ]
    )
    compared = compare_methods(table, [TRUTH, LPIPS, METRICS["hps_v2_score"]], "eacps", "ttflux")
    assert compared["metric"].to_list() == ["truth", "lpips", "hps_v2_score"]
    assert compared["n"].to_list() == [2, 3, 0]
    assert compared["left_out"].to_list() == [4, 3, 6]
    assert compared["note"].to_list()[-1] == "no task has both values"
    assert compared["gain"].to_list()[-1] is None


def test_the_sign_test_and_its_interval_are_exact() -> None:
    for wins, losses in ((17, 7), (5, 0), (0, 1), (30, 30), (1, 12)):
        ours: list[float | None] = [1.0] * wins + [0.0] * losses + [0.5] * 4
        theirs: list[float | None] = [0.0] * wins + [1.0] * losses + [0.5] * 4
        row = only(compare_methods(values(ours, theirs), [TRUTH], "eacps", "ttflux"))
        n = wins + losses
        tail = sum(comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n
        assert row["p"] == pytest.approx(min(1.0, 2 * tail))
        assert row["win_rate_low"] == pytest.approx(beta.ppf(0.025, wins, losses + 1) if wins else 0)
        assert row["win_rate_high"] == pytest.approx(beta.ppf(0.975, wins + 1, losses) if losses else 1)
    # The published headline, were its 24 comparisons as many tasks: not beyond luck by much.
    assert only(compare_methods(values([1.0] * 17 + [0.0] * 7, [0.0] * 17 + [1.0] * 7), [TRUTH], "eacps", "ttflux"))[
        "p"
    ] == pytest.approx(0.0639, abs=1e-4)


def test_few_or_equal_tasks_say_so() -> None:
    one = only(compare_methods(values([0.9], [0.4]), [TRUTH], "eacps", "ttflux"))
    assert (one["gain"], one["gain_low"], one["note"], one["p"]) == (0.5, None, "one task has no interval", 1.0)
    same = only(compare_methods(values([0.75] * 5, [0.25] * 5), [TRUTH], "eacps", "ttflux"))
    assert (same["gain_low"], same["gain_high"], same["note"]) == (0.5, 0.5, "every task has the same difference")
    tied = only(compare_methods(values([0.25] * 5, [0.25] * 5), [TRUTH], "eacps", "ttflux"))
    assert (tied["ties"], tied["win_rate"], tied["p"]) == (5, None, None)
    assert tied["note"] == "every task has the same difference; every task is tied"
    nothing = compare_methods(frame(), [TRUTH], "eacps", "ttflux")
    assert nothing.is_empty() and nothing.schema == pl.Schema(COMPARISON_SCHEMA)


def test_two_values_of_one_winner_are_an_error() -> None:
    table = values([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(pl.exceptions.ComputeError):
        compare_methods(pl.concat([table, table.head(1)]), [TRUTH], "eacps", "ttflux")


def test_the_curve_has_every_budget_that_both_have_and_any_two_can_be_held_against_each_other() -> None:
    table = pl.concat(
        [
            values([0.5, 0.6], [0.4, 0.4], budget=80),
            values([0.9, 0.8], [0.6, 0.6], budget=160),
            frame(("task 000", "eacps", 320, "truth", 1.0)),
        ]
    )
    curve = compare_methods(table, [TRUTH], "eacps", "ttflux")
    assert curve.select("budget", "rival_budget").rows() == [(80, 80), (160, 160)]
    assert curve["gain"].to_list() == pytest.approx([0.15, 0.25])
    half = only(compare_methods(table, [TRUTH], "eacps", "ttflux", budgets=[(80, 160)]))
    assert (half["budget"], half["rival_budget"], half["gain"]) == (80, 160, pytest.approx(-0.05))
    means = mean_scores(table, [TRUTH, *SELECTING])
    assert means.schema == pl.Schema(MEAN_SCORES_SCHEMA)
    assert means.select("method", "budget", "n").rows() == [
        ("eacps", 80, 2),
        ("eacps", 160, 2),
        ("eacps", 320, 1),
        ("ttflux", 80, 2),
        ("ttflux", 160, 2),
    ]
    assert means["mean"].to_list() == pytest.approx([0.55, 0.85, 1.0, 0.4, 0.6])
    assert means["low"].null_count() == 1


def test_the_same_values_give_the_same_intervals_however_they_lie() -> None:
    rng = np.random.default_rng(0)
    table = values(rng.normal(0.6, 0.2, 40).tolist(), rng.normal(0.5, 0.2, 40).tolist())
    compared = compare_methods(table, [TRUTH], "eacps", "ttflux")
    assert compared.equals(compare_methods(table.sample(fraction=1, shuffle=True, seed=1), [TRUTH], "eacps", "ttflux"))
    assert not compared.equals(compare_methods(table, [TRUTH], "eacps", "ttflux", seed=1))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    # Skewed, as differences of winners are.
    covered = [
        low <= 1 <= high
        for low, high in (bootstrap_interval(rng.exponential(1, 40), seed) for seed in range(400))
        if low and high
    ]
    assert len(covered) == 400
    assert 0.90 <= np.mean(covered) <= 0.97


def test_an_interval_is_the_central_95_percent_of_resampled_means() -> None:
    drawn = np.random.default_rng(0).normal(0, 1, 200)
    low, high = bootstrap_interval(drawn)
    assert low is not None and high is not None
    # The bootstrap's standard error is the textbook's.
    assert (high - low) / 2 / 1.96 == pytest.approx(drawn.std() / np.sqrt(200), rel=0.05)
    # More tasks than are resampled in one go.
    assert bootstrap_interval(np.arange(3000.0)) == pytest.approx((1499.5 - 31.0, 1499.5 + 31.0), abs=3)
