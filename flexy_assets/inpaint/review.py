"""How well scores agree with the people who reviewed the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from resources.label_studio.export import ReviewVerdict

GOOD_VERDICTS: Final = "No Issues"
"""The verdict that is positive where it stands alone; every other one is negative."""

MIN_PICTURES: Final = 10
"""With fewer pictures nothing is computed."""

LOWER_IS_BETTER: Final = frozenset({"lpips", "parent_lpips"})
"""Metrics of which less is better."""

RESAMPLES: Final = 2_000
_CELLS: Final = 2_000_000  # of resampled values at a time

AGREEMENT_SCHEMA: dict[str, Any] = {
    "metric": pl.String,
    "n": pl.Int64,
    "positive": pl.Int64,
    "negative": pl.Int64,
    "auc": pl.Float64,
    "auc_low": pl.Float64,
    "auc_high": pl.Float64,
    "threshold": pl.Float64,
    "true_positive": pl.Int64,
    "false_positive": pl.Int64,
    "true_negative": pl.Int64,
    "false_negative": pl.Int64,
    "note": pl.String,
}
"""The columns of `label_review`: one row a metric. A picture is positive where people found no issues."""


@dataclass(frozen=True)
class ReviewedTask:
    """A picture that was sent for review, its scores, and the verdicts on its task."""

    task: str
    sent_at: datetime
    scores: Mapping[str, float]
    verdicts: Sequence[ReviewVerdict]


@dataclass(frozen=True)
class Votes:
    """What people made of the pictures: `good` by place in the list, and how many were left out, by the reason."""

    good: Mapping[int, bool]
    left_out: Mapping[str, int]


def count_votes(pictures: Sequence[ReviewedTask]) -> Votes:
    """The majority of each picture's annotators, each by their last verdict since it was sent.

    A verdict that is older is on what was there before.
    """
    good: dict[int, bool] = {}
    left_out: Counter[str] = Counter()
    for place, picture in enumerate(pictures):
        last: dict[Any, tuple[datetime, bool]] = {}
        for number, verdict in enumerate(picture.verdicts):
            at = _time(verdict.at)
            if at is None or at < picture.sent_at:
                left_out["verdicts older than the picture" if at else "verdicts without a time"] += 1
                continue
            who = verdict.by or number
            if who not in last or at >= last[who][0]:
                last[who] = at, is_good_verdict(verdict)
        ayes = sum(vote for _, vote in last.values())
        if not last:
            left_out["pictures without a verdict"] += 1
        elif 2 * ayes == len(last):
            left_out["pictures with as many votes for as against"] += 1
        else:
            good[place] = 2 * ayes > len(last)
    return Votes(good, dict(left_out))


def is_good_verdict(verdict: ReviewVerdict) -> bool:
    """Whether a verdict is `GOOD` and nothing else."""
    return {choice.strip().lower() for choice in verdict.choices} == {GOOD_VERDICTS.lower()}


def _time(text: str | None) -> datetime | None:
    """A time as Label Studio writes it, in UTC and without its zone."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def score_agreement(pictures: Sequence[ReviewedTask], voted: Votes, seed: int = 0) -> pl.DataFrame:
    """By metric, how well it tells good pictures from others (`AGREEMENT`), the potential first.

    - `auc`: the chance that a good picture has the better score than another, a tie counting half, with the 95 %
      percentile bootstrap interval, resampled within good and others.
    - `threshold`: by Youden's J, the highest sum of sensitivity and specificity on the very pictures that the counts
      beside it are of: on others it will do worse.

    What cannot be computed is null, with a `note` that says why.
    """
    of_each = [(pictures[place].scores, vote) for place, vote in voted.good.items()]
    names = {name for picture in pictures for name in picture.scores}
    rows = []
    for name in sorted(names, key=lambda name: (name != "potential", name)):
        of = [(scores[name], vote) for scores, vote in of_each if name in scores]
        values = np.array([value for value, _ in of], float)
        good = np.array([vote for _, vote in of], bool)
        counts = {"metric": name, "n": len(of), "positive": int(good.sum()), "negative": int((~good).sum())}
        rows.append(counts | _statistics(values, good, name in LOWER_IS_BETTER, seed))
    return pl.DataFrame(rows, schema=AGREEMENT_SCHEMA, orient="row")


def _statistics(values: NDArray[np.float64], good: NDArray[np.bool_], lower: bool, seed: int) -> dict[str, Any]:
    n, positive = len(values), int(good.sum())
    if n < MIN_PICTURES:
        return {"note": f"{n} pictures with a score and a verdict are too few: {MIN_PICTURES} are needed"}
    if positive in (0, n):
        return {"note": f"all {n} pictures have {'no issues' if positive else 'issues'}: both kinds are needed"}
    better = -values if lower else values
    whole = auc(better[good], better[~good])
    low, high = _interval(better[good], better[~good], seed)
    threshold, kept = _youden(better, good)
    notes = []
    if min(positive, n - positive) < 5:
        notes.append(f"only {min(positive, n - positive)} of one kind: the interval is too narrow")
    elif low == high:
        notes.append("every resample separates alike: the interval is too narrow")
    if whole < 0.5:
        notes.append("it goes against people's verdicts")
    return {
        "auc": whole,
        "auc_low": low,
        "auc_high": high,
        "threshold": -threshold if lower else threshold,
        "true_positive": int((kept & good).sum()),
        "false_positive": int((kept & ~good).sum()),
        "true_negative": int((~kept & ~good).sum()),
        "false_negative": int((~kept & good).sum()),
        "note": "; ".join(notes) or None,
    }


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """The chance that one of `positive` (n,) lies above one of `negative` (m,), a tie counting half: 0–1."""
    return float(_aucs(positive[None], negative[None])[0])


def _aucs(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> NDArray[np.float64]:
    """`auc` of each row, from the sum of the positives' ranks (Mann and Whitney's U)."""
    from scipy.stats import rankdata

    n, m = positive.shape[1], negative.shape[1]
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)[:, :n]
    found: NDArray[np.float64] = (ranks.sum(axis=1) - n * (n + 1) / 2) / (n * m)
    return found


def _interval(positive: NDArray[np.float64], negative: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of `auc`; each class is resampled by itself, so none is ever empty."""
    rng, n, m = np.random.default_rng(seed), len(positive), len(negative)
    chunk = max(1, _CELLS // (n + m))
    counts = [min(chunk, RESAMPLES - first) for first in range(0, RESAMPLES, chunk)]
    drawn = (
        _aucs(positive[rng.integers(0, n, (count, n))], negative[rng.integers(0, m, (count, m))]) for count in counts
    )
    low, high = np.quantile(np.concatenate(list(drawn)), [0.025, 0.975])
    return float(low), float(high)


def _youden(values: NDArray[np.float64], good: NDArray[np.bool_]) -> tuple[float, NDArray[np.bool_]]:
    """The value from which on a picture is taken for good, and which are: the least of the best."""
    thresholds = np.unique(values)
    yes, no = np.sort(values[good]), np.sort(values[~good])
    missed, spared = np.searchsorted(yes, thresholds) / len(yes), np.searchsorted(no, thresholds) / len(no)
    best = float(thresholds[np.argmax(spared - missed)])
    return best, values >= best


def verdict_counts(every: Iterable[Sequence[ReviewVerdict]]) -> dict[str, int]:
    """How many annotations chose what, the most frequent first."""
    counts = Counter(", ".join(sorted(verdict.choices)) for each in every for verdict in each)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))
