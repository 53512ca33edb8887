"""What an image costs in seconds, by its steps and whether guidance runs the model twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from flexy_assets.sweep.analysis.clusters import BOOTSTRAP_DRAWS, CONFIDENCE_LEVEL, MAX_CLUSTERS
from flexy_assets.sweep.analysis.rows import (
    MIN_IMAGES,
    Floats,
    Row,
    float_column,
    make_frame,
    measured_images,
    split_by_engine,
)

TIMES_SCHEMA: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "n": pl.Int64(),
    "base": pl.Float64(),
    "base_low": pl.Float64(),
    "base_high": pl.Float64(),
    "a_step": pl.Float64(),
    "a_step_low": pl.Float64(),
    "a_step_high": pl.Float64(),
    "guided_step": pl.Float64(),
    "guided_step_low": pl.Float64(),
    "guided_step_high": pl.Float64(),
    "r2": pl.Float64(),
    "outliers": pl.Int64(),
    "note": pl.String(),
}
HUBER: Final = 1.345
"""Beyond so many robust deviations an image counts less (Huber 1964): the first one also loads the model."""
OUTLIER: Final = 4.0


@dataclass(frozen=True)
class TimeModel:
    """Seconds an image: `base` + steps · `a_step`, and steps · `guided_step` more where guidance is on.

    `drawn` (draws, 3) are refits to resampled images; `n` were timed, `outliers` of them far off the line.
    """

    coefficients: Floats
    drawn: Floats
    n: int
    r2: float | None
    outliers: int
    note: str | None

    def at(self, steps: Floats, guidance: Floats) -> Floats:
        """(m,) seconds at settings (m,)."""
        return np.maximum(_columns(steps, guidance) @ self.coefficients, 0.0)

    def draws_at(self, steps: Floats, guidance: Floats) -> Floats:
        """(draws, m) the same of every refit."""
        return np.maximum(self.drawn @ _columns(steps, guidance).T, 0.0)


def fit_times(rows: pl.DataFrame, seed: int = 0) -> TimeModel | None:
    """One engine's times; None where no image was timed."""
    known = rows.drop_nulls(["elapsed_ms", "steps"])
    n = known.height
    if not n:
        return None
    steps, guidance = float_column(known, "steps"), float_column(known, "guidance")
    seconds = float_column(known, "elapsed_ms") / 1000
    columns, notes = _columns(steps, guidance), []
    guided = guidance > 1
    both = min(guided.sum(), (~guided).sum()) >= MIN_IMAGES and bool(np.isfinite(guidance).any())
    used = [0]
    if np.ptp(steps) > 0:
        used += [1, 2] if both else [1]
    else:
        notes.append("steps never varies")
    if n <= len(used):
        notes.append(f"too few images were timed ({n})")
        used = [0]
    weights, rest, scale = _huber(columns[:, used], seconds)
    pool = np.random.default_rng(seed).permutation(n) % min(n, MAX_CLUSTERS)
    drawn = np.random.default_rng(seed).exponential(size=(BOOTSTRAP_DRAWS, pool.max() + 1))
    refits = []
    for counts in drawn:
        weighted = columns[:, used] * (weights * counts[pool])[:, None]
        refits.append(np.linalg.lstsq(weighted.T @ columns[:, used], weighted.T @ seconds, rcond=None)[0])
    full, spread = np.zeros(3), np.zeros((BOOTSTRAP_DRAWS, 3))
    weighted = columns[:, used] * weights[:, None]
    full[used] = np.linalg.lstsq(weighted.T @ columns[:, used], weighted.T @ seconds, rcond=None)[0]
    spread[:, used] = refits
    outliers = int((np.abs(rest) > OUTLIER * scale).sum()) if scale > 0 else 0
    if outliers:
        notes.append(f"{outliers} images took far longer or shorter than the line says and count less")
    total = float(((seconds - np.average(seconds, weights=weights)) ** 2 * weights).sum())
    r2 = 1 - float((rest**2 * weights).sum()) / total if total > 0 and len(used) > 1 else None
    return TimeModel(full, spread, n, r2, outliers, "; ".join(notes) or None)


def times_table(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Seconds an image costs: a `base`, `a_step`, and `guided_step` more a step where guidance is on.

    95 % intervals are a bootstrap over images. `guided_step` is null where too few images were made without
    guidance, or with it, to tell; `a_step` is then that of the images there are. Returns `TIMES`, one row an engine.
    """
    found: list[Row] = []
    for engine, rows in split_by_engine(measured_images(scores)):
        fitted = fit_times(rows, seed)
        if fitted is None:
            found.append({"engine": engine, "n": 0, "note": "no image was timed"})
            continue
        row: Row = {"engine": engine, "n": fitted.n, "r2": fitted.r2, "outliers": fitted.outliers, "note": fitted.note}
        lows, highs = np.quantile(fitted.drawn, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], axis=0)
        for name, value, low, high in zip(
            ("base", "a_step", "guided_step"), fitted.coefficients, lows, highs, strict=True
        ):
            if value or name == "base":
                row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
        found.append(row)
    return make_frame(found, TIMES_SCHEMA)


def _columns(steps: Floats, guidance: Floats) -> Floats:
    return np.stack([np.ones_like(steps), steps, steps * (guidance > 1)], axis=-1)


def _huber(columns: Floats, seconds: Floats) -> tuple[Floats, Floats, float]:
    """(n,) weights and residuals of Huber's regression by reweighting, and the residuals' robust deviation."""
    weights = np.ones(len(seconds))
    for _ in range(20):
        weighted = columns * weights[:, None]
        best = np.linalg.lstsq(weighted.T @ columns, weighted.T @ seconds, rcond=None)[0]
        rest = seconds - columns @ best
        scale = float(np.median(np.abs(rest))) / 0.6745
        if scale <= 1e-9 * max(float(np.abs(seconds).max()), 1e-300):
            break
        weights = np.minimum(1.0, HUBER * scale / np.maximum(np.abs(rest), 1e-300))
    return weights, rest, scale
