"""Drift: whether a metric's mean in an engine's newest sweep differs from its earlier sweeps. Trials are left out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from flexy_assets.storage.quality import RunTally
from flexy_assets.sweep.try_image import trial_sweep_id
from resources.metrics import Metric

MIN_IMAGES_PER_RUN = 30
"""Sweeps with fewer scores are left out."""

Z_THRESHOLD = 4.0
"""Standard errors: by chance one sweep in 16,000 lies as far off."""

MIN_EFFECT_SIZE = 0.5
"""Cohen's d of a medium effect: with many images any difference is significant."""

ROUNDING = 1e-6
"""Share of a metric's range below which differences are rounding."""


@dataclass(frozen=True)
class MetricDrift:
    """How an engine's newest sweep differs: `z` in standard errors (Welch), `d` in pooled standard deviations."""

    engine: str
    run_id: UUID
    images: int
    mean: float
    earlier_images: int
    earlier_mean: float
    z: float
    d: float

    @property
    def is_real(self) -> bool:
        """Whether the difference is both significant and large."""
        return abs(self.z) > Z_THRESHOLD and abs(self.d) > MIN_EFFECT_SIZE


def find_drifts(tallies: Sequence[RunTally], metric: Metric) -> list[MetricDrift]:
    """Return the drift of each engine with two sweeps to compare, by name; a sweep is as old as its first image."""
    sweeps = (t for t in tallies if t.run_id and t.run_id != trial_sweep_id(t.engine))
    compared = [t for t in sweeps if t.count >= MIN_IMAGES_PER_RUN]
    drifts = []
    for engine in sorted({t.engine or "unknown" for t in compared}):
        of_engine = (t for t in compared if (t.engine or "unknown") == engine)
        runs = sorted(of_engine, key=lambda tally: (tally.began or datetime.min, str(tally.run_id)))
        if len(runs) > 1:
            drifts.append(_compare(engine, runs[:-1], runs[-1], ROUNDING * (metric.high - metric.low)))
    return drifts


def _compare(engine: str, earlier: Sequence[RunTally], newest: RunTally, min_deviation: float) -> MetricDrift:
    old, old_mean, old_variance = _moments(earlier, min_deviation)
    new, new_mean, new_variance = _moments([newest], min_deviation)
    difference = new_mean - old_mean
    pooled = ((old - 1) * old_variance + (new - 1) * new_variance) / (old + new - 2)
    z = difference / math.sqrt(old_variance / old + new_variance / new)
    assert newest.run_id
    return MetricDrift(engine, newest.run_id, new, new_mean, old, old_mean, z, difference / math.sqrt(pooled))


def _moments(tallies: Sequence[RunTally], min_deviation: float) -> tuple[int, float, float]:
    """Return count, mean and variance of all together; the variance is at least `min_deviation` squared."""
    count = sum(t.count for t in tallies)
    mean = sum(t.total for t in tallies) / count
    variance = (sum(t.squares for t in tallies) - count * mean**2) / (count - 1)
    return count, mean, max(variance, min_deviation**2)
