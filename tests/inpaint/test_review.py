"""How scores agree with people: the known cases by hand, the rest against another implementation."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flexy_assets.inpaint.review import (
    AGREEMENT_SCHEMA,
    ReviewedTask,
    auc,
    count_votes,
    is_good_verdict,
    score_agreement,
    verdict_counts,
)
from resources.label_studio.export import ReviewVerdict

SENT = datetime(2025, 10, 1, 12)


def said(*choices: str, by: str | None = "1", hours: float = 1, at: str | None = "") -> ReviewVerdict:
    time = (SENT + timedelta(hours=hours)).isoformat() + "Z" if at == "" else at
    return ReviewVerdict(choices, 1, time, by)


def picture(*verdicts: ReviewVerdict, **scores: float) -> ReviewedTask:
    return ReviewedTask("7001", SENT, scores, verdicts)


def of(good: list[float], bad: list[float], metric: str = "potential") -> dict[str, Any]:
    pictures = [picture(said("No Issues"), **{metric: value}) for value in good]
    pictures += [picture(said("Error"), **{metric: value}) for value in bad]
    (row,) = score_agreement(pictures, count_votes(pictures)).to_dicts()
    return row


@pytest.mark.parametrize(
    ("choices", "good"),
    [
        (("No Issues",), True),
        (("no issues ",), True),
        (("No Issues", "Error"), False),
        (("Inconsistent Character",), False),
        ((), False),
    ],
)
def test_no_issues_alone_is_good(choices: tuple[str, ...], good: bool) -> None:
    assert is_good_verdict(ReviewVerdict(choices)) is good


def test_the_majority_counts_the_last_verdict_of_each_annotator() -> None:
    pictures = [
        picture(said("No Issues", by="1"), said("No Issues", by="2"), said("Error", by="3")),
        picture(said("No Issues", by="1"), said("Error", by="1", hours=2)),
        picture(said("Error", by="1", hours=2), said("No Issues", by="1")),
        picture(said("No Issues", by="1"), said("Error", by="2")),
        picture(said("No Issues", by=None), said("No Issues", by=None), said("Error", by=None)),
    ]
    found = count_votes(pictures)
    assert found.good == {0: True, 1: False, 2: False, 4: True}
    assert found.left_out == {"images with a tied vote": 1}


def test_a_verdict_on_a_previous_image_does_not_count() -> None:
    pictures = [
        picture(said("Error", hours=-1), said("No Issues", hours=1, by="2")),
        picture(said("Error", hours=-1)),
        picture(said("Error", at=None)),
        picture(said("Error", at="long ago")),
        picture(said("No Issues", at="2025-10-01T13:30:00+02:00")),
        picture(said("No Issues", at="2025-10-01T14:30:00+02:00")),
        picture(),
    ]
    found = count_votes(pictures)
    assert found.good == {0: True, 5: True}
    assert found.left_out == {
        "verdicts older than the image": 3,
        "verdicts without a time": 2,
        "images without a verdict": 5,
    }


def test_perfect_separation_and_no_information() -> None:
    row = of([5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 4])
    assert (row["n"], row["positive"], row["negative"]) == (11, 6, 5)
    assert (row["auc"], row["auc_low"], row["auc_high"], row["threshold"]) == (1, 1, 1, 5)
    counts = "true_positive", "false_positive", "true_negative", "false_negative"
    assert [row[name] for name in counts] == [6, 0, 5, 0]
    assert row["note"] == "every resample has the same AUC: the interval is too narrow"
    row = of([1] * 6, [1] * 6)
    assert (row["auc"], row["threshold"]) == (0.5, 1)
    row = of([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert row["auc"] == 0 and row["note"].endswith("contradicts people's verdicts")


def test_the_threshold_is_where_sensitivity_and_specificity_are_best() -> None:
    row = of([4, 5, 6, 7, 8], [1, 2, 3, 5, 9])
    assert row["threshold"] == 4
    assert (row["true_positive"], row["false_positive"], row["true_negative"], row["false_negative"]) == (5, 2, 3, 0)
    row = of([0.1, 0.2, 0.3, 0.4, 0.5], [0.4, 0.6, 0.7, 0.8, 0.9], "lpips")
    assert (row["auc"], row["threshold"], row["true_positive"]) == (pytest.approx(0.94), 0.5, 5), "less is better"


def test_auc_is_scikit_learns_and_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(100):
        good, bad = rng.normal(0.8, 1, 40), rng.normal(0, 1, 25)
        truth = np.concatenate([np.ones(40), np.zeros(25)])
        values = np.concatenate([good, bad])
        rounded = np.round(values, trial % 3)
        assert auc(rounded[:40], rounded[40:]) == pytest.approx(roc_auc_score(truth, rounded))
        if trial < 40:
            row = of(list(good), list(bad))
            assert row["auc_low"] < row["auc"] < row["auc_high"]
            # P(good > bad) of two normals 0.8 apart is Φ(0.8 / √2).
            held += row["auc_low"] < 0.7142 < row["auc_high"]
    assert 33 <= held <= 40


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ([1.0] * 4, [0.0] * 5, "too few images with a score and a verdict: 9 of at least 10"),
        ([1.0] * 12, [], "all 12 images have no issues: both classes are needed"),
        ([], [1.0] * 12, "all 12 images have issues: both classes are needed"),
    ],
)
def test_missing_statistics_have_a_note(good: list[float], bad: list[float], words: str) -> None:
    row = of(good, bad)
    assert row["note"] == words and row["auc"] is None and row["threshold"] is None


def test_each_metric_is_held_against_the_pictures_that_have_it() -> None:
    pictures = [picture(said("No Issues" if n % 2 else "Error"), potential=n, identity=-n) for n in range(12)]
    pictures += [picture(said("Error"), potential=3.0), picture(identity=2.0)]
    found = score_agreement(pictures, count_votes(pictures))
    assert dict(zip(found["metric"], found["n"], strict=True)) == {"potential": 13, "identity": 12}
    assert found["metric"][0] == "potential"
    nothing = score_agreement([], count_votes([]))
    assert nothing.is_empty() and dict(nothing.schema) == AGREEMENT_SCHEMA
    assert verdict_counts([[said("Error"), said("Error")], [said("No Issues")]]) == {"Error": 2, "No Issues": 1}
    few = of([1.0] * 8, [0.0, 0.5])
    assert few["note"] == "only 2 of one class: the interval is too narrow"
