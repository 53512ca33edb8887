"""What a search chooses by: sums in the units they were meant in, and nothing made up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import rankdata

from flexy_assets.edits.search.selectors import (
    Potential,
    PromptFollowing,
    RankSum,
    edit_potential,
    inpaint_potential,
    rank_candidates,
)
from resources.errors import BadInputError


def test_an_edits_potential_is_the_published_sum() -> None:
    scores = {"pf": 26.53, "cons": 0.912, "lpips": 0.347, "hps_v2_score": 0.28}
    assert edit_potential().value(scores) == 26.53 + 10 * 0.912 - 3 * 0.347
    assert edit_potential("5", "-0.5").value(scores) == 26.53 + 5 * 0.912 + 0.5 * 0.347


def test_an_inpaintings_potential_counts_identity_twice() -> None:
    scores = {"consistency": 7.0, "quality": 6.5, "identity": 9.0}
    assert inpaint_potential().value(scores) == 7 + 6.5 + 2 * 9
    assert inpaint_potential(0.5, "2", 1).value(scores) == 3.5 + 13 + 9


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_a_score_that_is_missing_leaves_no_potential(missing: float | None) -> None:
    for metric in ("pf", "cons", "lpips"):
        scores: dict[str, float | None] = {"pf": 26.0, "cons": 0.9, "lpips": 0.3}
        assert edit_potential().value(scores) is not None
        scores[metric] = missing
        assert edit_potential().value(scores) is None
        del scores[metric]
        assert edit_potential().value(scores) is None


def test_a_metric_of_no_weight_is_not_asked_for() -> None:
    assert edit_potential(0, 0).value({"pf": 26.0}) == 26.0
    assert edit_potential(0, 0).value({"pf": 26.0, "cons": math.nan, "lpips": None}) == 26.0


@pytest.mark.parametrize("weight", ["", "ten", "nan", "inf", "1e7", "1,5", "0x10"])
def test_a_weight_that_is_no_number_is_named(weight: str) -> None:
    for name, make in (
        ("alpha", edit_potential),
        ("beta", lambda w: edit_potential(10, w)),
        ("alpha", inpaint_potential),
    ):
        with pytest.raises(BadInputError) as caught:
            make(weight)
        assert str(caught.value).startswith(f"invalid {name} {weight!r}: must be a number such as 10")


def test_a_potential_is_printed_as_a_formula() -> None:
    assert str(edit_potential()) == "pf + 10·cons − 3·lpips"
    assert str(edit_potential(1, 0)) == "pf + cons"
    assert str(inpaint_potential()) == "consistency + quality + 2·identity"


def test_the_best_come_first_equal_ones_in_their_order_and_the_unscored_last() -> None:
    values = [None, 1.0, 3.0, math.nan, 3.0, -2.0, None]
    assert rank_candidates(Potential({"pf": 1}), [{"pf": value} for value in values]) == [2, 4, 1, 5, 0, 3, 6]
    assert rank_candidates(Potential({"lpips": -1}), [{"lpips": 0.3}, {"lpips": 0.1}]) == [1, 0]


def test_a_rank_sum_is_the_mean_rank_in_any_units() -> None:
    rng = np.random.default_rng(0)
    table = {"pf": rng.normal(25, 2, 9).round(), "cons": rng.normal(0.9, 0.05, 9), "lpips": rng.normal(0.3, 0.1, 9)}
    ranks = RankSum({"pf": 1, "cons": 1, "lpips": -1})
    candidates = [{name: float(column[i]) for name, column in table.items()} for i in range(9)]
    values = ranks.values(candidates)
    by_scipy = sum(rankdata(sign * table[name]) for name, sign in (("pf", 1), ("cons", 1), ("lpips", -1)))
    assert np.allclose(np.diff(values), np.diff(by_scipy) / 9)
    # A hundredth of the unit is the same order.
    assert ranks.values([scores | {"pf": scores["pf"] / 100} for scores in candidates]) == values


def test_a_picture_in_which_nothing_was_done_does_not_win_by_keeping_everything() -> None:
    untouched = {"pf": 18.0, "pf_gain": 0.0, "cons": 1.0, "lpips": 0.0}
    edited = [{"pf": 25.0 + i, "pf_gain": 7.0 + i, "cons": 0.9 - i / 100, "lpips": 0.2 + i / 100} for i in range(3)]
    ranks = RankSum({"pf": 1, "cons": 1, "lpips": -1})
    assert rank_candidates(ranks, [untouched, *edited])[0] == 0
    assert rank_candidates(PromptFollowing(ranks), [untouched, *edited]) == [1, 2, 3, 0]
    # Nobody is nearer to the prompt than the source: there is nothing to tell them apart by but ranks.
    astray = [scores | {"pf_gain": -1.0 - i} for i, scores in enumerate([untouched, *edited])]
    assert rank_candidates(PromptFollowing(ranks), astray) == rank_candidates(ranks, astray)
    assert PromptFollowing(ranks).values([edited[0], {**edited[1], "pf_gain": None}, {}])[1:] == [None, None]


def test_a_rank_sum_excludes_candidates_without_scores() -> None:
    ranks = RankSum({"pf": 1, "cons": 1})
    whole = [{"pf": 1.0, "cons": 3.0}, {"pf": 2.0, "cons": 1.0}, {"pf": 3.0, "cons": 4.0}]
    with_holes = [whole[0], {"pf": 9.0, "cons": None}, *whole[1:], {"pf": math.nan, "cons": 9.0}]
    first, *rest = ranks.values(whole)
    assert ranks.values(with_holes) == [first, None, *rest, None]
    assert ranks.values([{"pf": 1.0}]) == [None]
    assert ranks.values([]) == []
