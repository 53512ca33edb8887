"""Agreement of scores with the people who reviewed the images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from resources.chunks import split_chunks
from resources.label_studio.export import ReviewVerdict
from resources.metrics import edits
from resources.metrics.inpaint import METRICS

GOOD_VERDICTS: Final = "No Issues"
"""The verdict that is positive if it is the only choice; every other verdict is negative."""

MIN_IMAGES_REVIEWED: Final = 10  # with fewer images no statistic is computed
RESAMPLES: Final = 2_000
_CELLS: Final = 2_000_000  # resampled values at a time

AGREEMENT_SCHEMA: dict[str, Any] = {
    **{"metric": pl.String, "n": pl.Int64, "positive": pl.Int64, "negative": pl.Int64},
    **dict.fromkeys(("auc", "auc_low", "auc_high", "threshold"), pl.Float64),
    **dict.fromkeys(("true_positive", "false_positive", "true_negative", "false_negative"), pl.Int64),
    "note": pl.String,
}
"""The columns of `label_review`: one row per metric. An image is positive if people found no issues."""


@dataclass(frozen=True)
class ReviewedTask:
    """An image that was sent for review, its scores, and the verdicts on its task."""

    task: str
    sent_at: datetime
    scores: Mapping[str, float]
    verdicts: Sequence[ReviewVerdict]


@dataclass(frozen=True)
class Votes:
    """People's votes: `good` by index of the image, and the number of excluded verdicts and images by reason."""

    good: Mapping[int, bool]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class ReviewSummary:
    """The counts of a review; `notes` are about verdicts that could not be updated."""

    votes: Votes
    notes: Sequence[str]

    @property
    def reviewed(self) -> str:
        return f"{len(self.votes.good)}, {sum(self.votes.good.values())} of them good"

    @property
    def excluded(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.votes.left_out.items()) or "none"

    @property
    def remarks(self) -> str:
        return "; ".join(self.notes) or "none"


def count_votes(images: Sequence[ReviewedTask]) -> Votes:
    """Return the majority of each image's annotators, by their last verdicts; those before it was sent do not count."""
    good: dict[int, bool] = {}
    left_out: Counter[str] = Counter()
    for index, image in enumerate(images):
        last: dict[Any, tuple[datetime, bool]] = {}
        for number, verdict in enumerate(image.verdicts):
            time = _parse_time(verdict.at)
            if time is None or time < image.sent_at:
                left_out["verdicts older than the image" if time else "verdicts without a time"] += 1
                continue
            annotator = verdict.by or number
            if annotator not in last or time >= last[annotator][0]:
                last[annotator] = time, is_good_verdict(verdict)
        good_votes = sum(vote for _, vote in last.values())
        if not last:
            left_out["images without a verdict"] += 1
        elif 2 * good_votes == len(last):
            left_out["images with a tied vote"] += 1
        else:
            good[index] = 2 * good_votes > len(last)
    return Votes(good, dict(left_out))


def is_good_verdict(verdict: ReviewVerdict) -> bool:
    """Return whether a verdict is `GOOD_VERDICTS` and nothing else."""
    return {choice.strip().lower() for choice in verdict.choices} == {GOOD_VERDICTS.lower()}


def _parse_time(text: str | None) -> datetime | None:
    """Return a time of Label Studio in UTC, without its zone; None where it is invalid."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def score_agreement(images: Sequence[ReviewedTask], votes: Votes, seed: int = 0) -> pl.DataFrame:
    """Return how well each metric separates good images from others (`AGREEMENT_SCHEMA`), the potential first.

    - `auc`: the probability that a good image has a better score than another one, a tie counting half, with the
      95 % percentile bootstrap interval, resampled within both classes.
    - `threshold`: by Youden's J, the highest sum of sensitivity and specificity on these images; the counts are of
      the same images, so they are optimistic.

    Statistics that cannot be computed are null, with a `note`.
    """
    voted = [(images[index].scores, vote) for index, vote in votes.good.items()]
    names = {name for image in images for name in image.scores}
    rows = []
    for name in sorted(names, key=lambda name: (name != "potential", name)):
        pairs = [(scores[name], vote) for scores, vote in voted if name in scores]
        values = np.array([value for value, _ in pairs], float)
        good = np.array([vote for _, vote in pairs], bool)
        counts = {"metric": name, "n": len(pairs), "positive": int(good.sum()), "negative": int((~good).sum())}
        rows.append(counts | _statistics(values, good, not _is_higher_better(name), seed))
    return pl.DataFrame(rows, schema=AGREEMENT_SCHEMA, orient="row")


def _is_higher_better(metric: str) -> bool:
    record = METRICS.get(metric) or edits.METRICS.get(metric)
    return record is None or record.higher_is_better


def _statistics(values: NDArray[np.float64], good: NDArray[np.bool_], lower: bool, seed: int) -> dict[str, Any]:
    n, positive = len(values), int(good.sum())
    if n < MIN_IMAGES_REVIEWED:
        return {"note": f"too few images with a score and a verdict: {n} of at least {MIN_IMAGES_REVIEWED}"}
    if positive in (0, n):
        return {"note": f"all {n} images have {'no issues' if positive else 'issues'}: both classes are needed"}
    better, fewest = -values if lower else values, min(positive, n - positive)
    area = auc(better[good], better[~good])
    low, high = _interval(better[good], better[~good], seed)
    threshold, accepted = _youden(better, good)
    notes = []
    if fewest < 5:
        notes.append(f"only {fewest} of one class: the interval is too narrow")
    elif low == high:
        notes.append("every resample has the same AUC: the interval is too narrow")
    if area < 0.5:
        notes.append("contradicts people's verdicts")
    cells = {"true_positive": accepted & good, "false_positive": accepted & ~good}
    cells |= {"true_negative": ~accepted & ~good, "false_negative": ~accepted & good}
    return {
        **{"auc": area, "auc_low": low, "auc_high": high, "threshold": -threshold if lower else threshold},
        **{name: int(cell.sum()) for name, cell in cells.items()},
        "note": "; ".join(notes) or None,
    }


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Return the probability that one of `positive` (n,) exceeds one of `negative` (m,), a tie counting half."""
    return float(_aucs(positive[None], negative[None])[0])


def _aucs(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `auc` of each row, from the rank sum of the positives (Mann and Whitney's U)."""
    from scipy.stats import rankdata

    n, m = positive.shape[1], negative.shape[1]
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)[:, :n]
    areas: NDArray[np.float64] = (ranks.sum(axis=1) - n * (n + 1) / 2) / (n * m)
    return areas


def _interval(positive: NDArray[np.float64], negative: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of `auc`; each class is resampled separately, so none is empty."""
    rng, n, m = np.random.default_rng(seed), len(positive), len(negative)
    areas = []
    for resamples in split_chunks(range(RESAMPLES), max(1, _CELLS // (n + m))):
        count = len(resamples)
        areas.append(_aucs(positive[rng.integers(0, n, (count, n))], negative[rng.integers(0, m, (count, m))]))
    low, high = np.quantile(np.concatenate(areas), [0.025, 0.975])
    return float(low), float(high)


def _youden(values: NDArray[np.float64], good: NDArray[np.bool_]) -> tuple[float, NDArray[np.bool_]]:
    """Return the threshold of Youden's J, the lowest among equals, and which values reach it."""
    thresholds = np.unique(values)
    # The shares below each threshold: of the negatives, its specificity; of the positives, its false negative rate.
    below = [np.searchsorted(np.sort(each), thresholds) / len(each) for each in (values[~good], values[good])]
    best = float(thresholds[np.argmax(below[0] - below[1])])
    return best, values >= best


def verdict_counts(verdicts: Iterable[Sequence[ReviewVerdict]]) -> dict[str, int]:
    """Return the number of annotations by their choices, the most frequent first."""
    counts = Counter(", ".join(sorted(verdict.choices)) for of_task in verdicts for verdict in of_task)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
