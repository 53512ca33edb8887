"""What may be resampled, and what that says: images, or whole prompts where prompts repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_REPEATED_PROMPTS: Final = 6
"""With fewer prompts, what other prompts would do cannot be learnt from these: images are resampled within them."""
MAX_CLUSTERS: Final = 1000
"""More are pooled at random into so many, and a draw costs the same for any number of images."""
BOOTSTRAP_DRAWS: Final = 500
PERMUTATION_DRAWS: Final = 999
CONFIDENCE_LEVEL: Final = 0.95


@dataclass(frozen=True)
class Clusters:
    """`of` (n,) the cluster each image is drawn with, from 0 to `count - 1`; `by` is "prompt" or "image".

    `prompts` (n,) numbers the prompts, whose own level the fits take out; images of an unknown prompt have
    one each.
    """

    of: Ints
    count: int
    by: str
    prompts: Ints

    @property
    def t(self) -> float:
        """Student's quantile for two-sided intervals at `LEVEL`, with one degree of freedom fewer than clusters."""
        from scipy.stats import t

        return float(t.ppf((1 + CONFIDENCE_LEVEL) / 2, max(self.count - 1, 1)))

    @property
    def normal(self) -> float:
        """The same quantile with any number of clusters."""
        from scipy.stats import norm

        return float(norm.ppf((1 + CONFIDENCE_LEVEL) / 2))

    def sums(self, values: Floats) -> Floats:
        """(count, …) each cluster's sum of values (n, …)."""
        order = np.argsort(self.of, kind="stable")
        starts = np.searchsorted(self.of[order], np.arange(self.count))
        return np.add.reduceat(values[order], starts, axis=0)

    def weights(self, seed: int, draws: int = BOOTSTRAP_DRAWS) -> Floats:
        """(draws, count) of the Bayesian bootstrap (Rubin 1981), 1 on average: no cluster is ever left out whole."""
        drawn = np.random.default_rng(seed).exponential(size=(draws, self.count))
        return drawn / drawn.mean(axis=1, keepdims=True)

    @property
    def widening(self) -> float:
        """By how much draws fall short of the deviation of an unbiased estimate."""
        return float(np.sqrt((self.count + 1) / max(self.count - 1, 1)))


def find_clusters(rows: pl.DataFrame, seed: int = 0) -> Clusters:
    """The clusters of one engine's images (n rows): prompts where at least `LEAST_PROMPTS` of them repeat."""
    n = rows.height
    alone = pl.when(pl.col("prompt").is_null()).then(pl.int_range(pl.len()))
    named = rows.select(pl.struct("prompt", alone.alias("alone")).rank("dense")).to_series()
    prompts = named.to_numpy().astype(np.int64) - 1
    distinct = int(prompts.max()) + 1 if n else 0
    by = "prompt" if MIN_REPEATED_PROMPTS <= distinct < n else "image"
    of, count = (prompts, distinct) if by == "prompt" else (np.arange(n), n)
    if count > MAX_CLUSTERS:
        pooled = np.random.default_rng(seed).permutation(count) % MAX_CLUSTERS
        of, count = pooled[of], MAX_CLUSTERS
    return Clusters(of, count, by, prompts)
