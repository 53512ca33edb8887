"""Whether a metric's mean in an engine's newest run lies where its earlier runs put it. Trials are no such run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from flexy_assets.storage.quality import RunTally
from flexy_assets.sweep.try_image import trial_sweep_id
from resources.metrics import Metric

MIN_IMAGES_PER_RUN = 30
"""A run with fewer scores is not judged, nor judged by."""

Z_THRESHOLD = 4.0
"""Standard errors: one sound run in 16,000 lies as far off."""

MIN_EFFECT_SIZE = 0.5
"""Standard deviations (Cohen's d; a half is his medium effect): with many images any difference is beyond chance."""

ROUNDING = 1e-6
"""Of a metric's bounds: scores that lie nearer together than this are the same."""


@dataclass(frozen=True)
class MetricDrift:
    """How an engine's newest run differs: `z` in standard errors (Welch), `d` in pooled standard deviations."""

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
        """Whether the difference is neither chance nor small."""
        return abs(self.z) > Z_THRESHOLD and abs(self.d) > MIN_EFFECT_SIZE


def find_drifts(tallies: Sequence[RunTally], metric: Metric) -> list[MetricDrift]:
    """Each engine that has two runs to compare, by name. A run is as old as its first image."""
    sweeps = (t for t in tallies if t.run_id and t.run_id != trial_sweep_id(t.engine))
    judged = [t for t in sweeps if t.count >= MIN_IMAGES_PER_RUN]
    found = []
    for engine in sorted({t.engine or "unknown" for t in judged}):
        runs = sorted((t for t in judged if (t.engine or "unknown") == engine), key=_age)
        if len(runs) > 1:
            found.append(_compare(engine, runs[:-1], runs[-1], ROUNDING * (metric.high - metric.low)))
    return found


def _age(tally: RunTally) -> tuple[datetime, str]:
    return tally.began or datetime.min, str(tally.run_id)


def _compare(engine: str, earlier: Sequence[RunTally], newest: RunTally, least: float) -> MetricDrift:
    (old, old_mean, old_variance), (new, new_mean, new_variance) = _moments(earlier, least), _moments([newest], least)
    difference = new_mean - old_mean
    pooled = ((old - 1) * old_variance + (new - 1) * new_variance) / (old + new - 2)
    z = difference / math.sqrt(old_variance / old + new_variance / new)
    assert newest.run_id
    return MetricDrift(engine, newest.run_id, new, new_mean, old, old_mean, z, difference / math.sqrt(pooled))


def _moments(tallies: Sequence[RunTally], least: float) -> tuple[int, float, float]:
    """Count, mean and variance of all together; the variance is at least `least` squared."""
    count = sum(t.count for t in tallies)
    mean = sum(t.total for t in tallies) / count
    variance = (sum(t.squares for t in tallies) - count * mean**2) / (count - 1)
    return count, mean, max(variance, least**2)
