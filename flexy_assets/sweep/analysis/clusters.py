"""The units that intervals resample: images, or whole prompts where prompts repeat."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_REPEATED_PROMPTS: Final = 6
"""Fewer prompts say nothing about other prompts: images are resampled within them."""
MAX_CLUSTERS: Final = 1000
"""More are pooled at random into this many, so a draw costs the same for any number of images."""
BOOTSTRAP_DRAWS: Final = 500
PERMUTATION_DRAWS: Final = 999
CONFIDENCE_LEVEL: Final = 0.95


@dataclass(frozen=True)
class Clusters:
    """`labels` (n,) the cluster of each image, from 0 to `count - 1`; `by` is "prompt", "pair" or "image".

    `prompts` (n,) numbers the prompts; images of an unknown prompt have one each. `blocks` (n,) numbers what the fits
    remove the mean of: prompts, or pairs of prompt and seed where several settings share each pair.
    """

    labels: Ints
    count: int
    by: str
    prompts: Ints
    blocks: Ints

    @property
    def t(self) -> float:
        """Student's quantile of two-sided 95 % intervals, with one degree of freedom fewer than clusters."""
        from scipy.stats import t

        return float(t.ppf((1 + CONFIDENCE_LEVEL) / 2, max(self.count - 1, 1)))

    @property
    def normal(self) -> float:
        """The normal quantile of the same intervals."""
        from scipy.stats import norm

        return float(norm.ppf((1 + CONFIDENCE_LEVEL) / 2))

    def sums(self, values: Floats) -> Floats:
        """Return (count, …) each cluster's sum of values (n, …)."""
        order = np.argsort(self.labels, kind="stable")
        starts = np.searchsorted(self.labels[order], np.arange(self.count))
        return np.add.reduceat(values[order], starts, axis=0)

    def weights(self, seed: int) -> Floats:
        """Return (`BOOTSTRAP_DRAWS`, count) weights of the Bayesian bootstrap (Rubin 1981), 1 on average: none is 0."""
        weights = np.random.default_rng(seed).exponential(size=(BOOTSTRAP_DRAWS, self.count))
        return weights / weights.mean(axis=1, keepdims=True)

    @property
    def widening(self) -> float:
        """The factor by which draws must be widened to the deviation of an unbiased estimate."""
        return float(np.sqrt((self.count + 1) / max(self.count - 1, 1)))


def find_clusters(rows: pl.DataFrame, seed: int = 0) -> Clusters:
    """Return the clusters of one engine's images (n rows).

    Prompts where `MIN_REPEATED_PROMPTS` or more repeat; else pairs of prompt and seed where so many of those do.
    """
    n = rows.height
    unknown_id = pl.when(pl.col("prompt").is_null()).then(pl.int_range(pl.len())).alias("alone")
    keys = [pl.struct("prompt", unknown_id, *also).rank("dense").cast(pl.Int64) - 1 for also in ((), ("seed",))]
    prompts, pairs = (rows.select(key).to_series().to_numpy() for key in keys)
    distinct, pair_count = (int(labels.max()) + 1 if n else 0 for labels in (prompts, pairs))
    is_paired = distinct < pair_count <= n / 2
    kind, labels, count = "image", np.arange(n), n
    if MIN_REPEATED_PROMPTS <= distinct < n:
        kind, labels, count = "prompt", prompts, distinct
    elif is_paired and pair_count >= MIN_REPEATED_PROMPTS:
        kind, labels, count = "pair", pairs, pair_count
    if count > MAX_CLUSTERS:
        pools = np.random.default_rng(seed).permutation(count) % MAX_CLUSTERS
        labels, count = pools[labels], MAX_CLUSTERS
    return Clusters(labels, count, kind, prompts, pairs if is_paired else prompts)
