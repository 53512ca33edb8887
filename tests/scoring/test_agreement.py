"""What computed a column is recognised from two lists of numbers: equal but for rounding, or not."""

from __future__ import annotations

import numpy as np
import pytest

from flexy_assets.scoring.agreement import (
    Agreement,
    compare_scores,
    describe_agreement,
    describe_variant,
    rank_agreements,
    scorer_variants,
)
from resources.metrics.sweep import METRICS

RNG = np.random.default_rng(0)
SCORES = RNG.normal(0.28, 0.034, 64)
"""As many as are sampled, with the mean and spread of FlexyFace's CLIP scores."""


def compare(existing: np.ndarray, computed: np.ndarray) -> Agreement:
    return compare_scores("clip", existing, computed, -1, 1)


@pytest.mark.parametrize(("noise", "exact"), [(0, True), (1e-6, True), (2e-4, False), (1.1e-3, False)])
def test_rounding_of_any_precision_is_equal(noise: float, exact: bool) -> None:
    found = compare(SCORES, SCORES + RNG.normal(0, noise, 64))
    assert (found.equal, found.exact, found.agreeing) == (True, exact, 64)


def test_another_scorers_numbers_are_not_equal() -> None:
    # As two CLIPs differ, with QuickGELU and without: correlated by .96.
    other = 0.96 * (SCORES - SCORES.mean()) + RNG.normal(0, 0.28 * 0.034, 64) + SCORES.mean()
    for computed in (other, SCORES + 0.005, SCORES[::-1], RNG.uniform(0.1, 0.4, 64)):
        assert not compare(SCORES, computed).equal
        assert not compare(computed, SCORES).equal


def test_values_all_over_the_place_agree_with_nothing() -> None:
    assert not compare(RNG.normal(0, 1e6, 64), SCORES).equal
    assert not compare(np.where(np.arange(64) == 3, 1e9, SCORES + 0.02), SCORES).equal
    assert not compare(np.full(64, 0.28), SCORES).equal


def test_few_replaced_images_do_not_hide_the_maker_and_two_makers_do() -> None:
    for replaced, equal in ((3, True), (5, False)):
        existing = np.where(np.arange(64) < replaced, SCORES + 0.1, SCORES)
        found = compare(existing, SCORES)
        assert (found.equal, found.agreeing) == (equal, 64 - replaced)


def test_a_score_that_could_not_be_computed_is_left_out_and_enough_must_be_left() -> None:
    computed = np.where(np.arange(64) < 50, np.nan, SCORES)
    found = compare(SCORES, computed)
    assert (found.sampled, found.compared, found.equal) == (64, 14, True)
    assert not compare(SCORES, np.where(np.arange(64) < 60, np.nan, SCORES)).equal
    assert compare(SCORES[:2], SCORES[:2]).equal
    nothing = compare(SCORES, np.full(64, np.nan))
    assert (nothing.compared, nothing.equal, nothing.correlation) == (0, False, None)


def test_the_nearest_of_several_equal_ones_is_the_first() -> None:
    far, near = compare(SCORES, SCORES + 1e-3), compare(SCORES, SCORES + 1e-5)
    none = compare(SCORES, SCORES[::-1])
    assert rank_agreements([none, far, near]) == [near, far, none]


def test_the_figures_are_in_words() -> None:
    assert describe_agreement(compare(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.4]))) == (
        "clip: 2 of 3 agree, mean difference 0.03333 at a spread of 0.08165, correlation 0.982"
    )


def test_every_variant_is_tried_the_own_one_first() -> None:
    columns = ["", "bench_runs.prompt"]
    assert [describe_variant(each) for each in scorer_variants(METRICS["clip_score"], columns)] == [
        "clip",
        "clip with the prompts of bench_runs.prompt",
        "clip_gelu",
        "clip_gelu with the prompts of bench_runs.prompt",
    ]
    assert [describe_variant(each) for each in scorer_variants(METRICS["aesthetic_score"], columns)] == [
        "clip + aesthetic_v1",
        "clip + aesthetic_linear",
        "clip_gelu + aesthetic_v1",
        "clip_gelu + aesthetic_linear",
    ]
    assert [describe_variant(each) for each in scorer_variants(METRICS["hps_v2_score"], columns)] == [
        "hps",
        "hps with the prompts of bench_runs.prompt",
    ]
