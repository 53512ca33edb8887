"""Disagreement of metrics: pairs of images of one prompt that two metrics order oppositely."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets.sweep.analysis import METRIC_LABELS

SHOWN_PAIRS: Final = 12
"""Pairs of images found for two metrics."""
CANDIDATE_PAIRS: Final = 64
"""Images a prompt, at each end of the difference of two metrics, that are searched for pairs."""
DRAWS: Final = 20
"""Pairs of each image in the estimate of the share of disagreements."""


@dataclass(frozen=True)
class MetricDisagreement:
    """Two metrics: the share of image pairs that they order oppositely, and the pairs furthest apart.

    `share` is null where no two images can be compared; `pairs` are the id of the image that `left` prefers, and the
    one that `right` does.
    """

    left: str
    right: str
    share: float | None
    pairs: list[tuple[str, str]]


def are_same_prompt(overall: pl.DataFrame) -> pl.Series:
    """Return whether each image's engine has two images of one prompt, so that pairs are taken within prompts."""
    repeats = (pl.len().over("engine", "prompt") > 1) & pl.col("prompt").is_not_null()
    return overall.select(repeats.any().over("engine")).to_series()


def find_disagreements(overall: pl.DataFrame, seed: int = 0) -> list[MetricDisagreement]:
    """Return every two metrics, those that disagree most first.

    Scores are compared in standard deviations (z) within their engine. A pair of images is as far apart as the weaker
    of the two preferences: min(z_left(a) − z_left(b), z_right(b) − z_right(a)). No image is in two pairs of the same
    metrics. Pairs are within one engine and, where prompts repeat in it, within one prompt.
    """
    prompt = pl.when(are_same_prompt(overall)).then(pl.col("prompt").fill_null(pl.concat_str(pl.lit("\0"), "image_id")))
    groups = overall.select(pl.struct("engine", prompt.alias("prompt")).rank("dense")).to_series().to_numpy()
    z = {metric: _z_scores(overall, metric) for metric in METRIC_LABELS}
    ids = overall["image_id"].fill_null("").to_list()
    neighbours = list(_sample_pairs(groups, seed))
    results = []
    for left, right in combinations(METRIC_LABELS, 2):
        disagreements = compared = 0
        for a, b in neighbours:
            signs = np.sign(z[left][a] - z[left][b]) * np.sign(z[right][a] - z[right][b])
            disagreements, compared = disagreements + int((signs < 0).sum()), compared + int((np.abs(signs) > 0).sum())
        pairs = [(ids[a], ids[b]) for a, b in _furthest_pairs(z[left], z[right], groups)]
        results.append(MetricDisagreement(left, right, disagreements / compared if compared else None, pairs))
    return sorted(results, key=lambda pair: -1.0 if pair.share is None else pair.share, reverse=True)


def _z_scores(overall: pl.DataFrame, metric: str) -> NDArray[np.float64]:
    score = pl.col(metric)
    z = (score - score.mean().over("engine")) / score.std().over("engine")
    return overall.select(z).to_series().fill_null(np.nan).to_numpy()


def _sample_pairs(groups: NDArray[Any], seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield each image paired with another of its group, in `DRAWS` random orders."""
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        order = np.lexsort((rng.random(groups.size), groups))
        is_same_group = groups[order[1:]] == groups[order[:-1]]
        yield order[1:][is_same_group], order[:-1][is_same_group]


def _furthest_pairs(
    left: NDArray[np.float64], right: NDArray[np.float64], groups: NDArray[Any]
) -> Iterator[tuple[int, int]]:
    """Yield the rows that `left` and that `right` prefers, furthest apart first."""
    scored = np.flatnonzero(np.isfinite(left) & np.isfinite(right))
    order = scored[np.lexsort((left[scored] - right[scored], groups[scored]))]
    candidates: list[tuple[float, int, int]] = []
    for group in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        a, b = group[-CANDIDATE_PAIRS:], group[:CANDIDATE_PAIRS]
        distance = np.minimum(left[a][:, None] - left[b], right[b] - right[a][:, None])
        best = np.argsort(-distance, axis=None, kind="stable")[: 4 * SHOWN_PAIRS]
        candidates += [
            (float(distance.flat[k]), int(a[k // b.size]), int(b[k % b.size])) for k in best if distance.flat[k] > 0
        ]
    used: set[int] = set()
    for _, first, second in sorted(candidates, key=lambda pair: -pair[0]):
        if len(used) == 2 * SHOWN_PAIRS:
            return
        if not used & {first, second}:
            used |= {first, second}
            yield first, second
