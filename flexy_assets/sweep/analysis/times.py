"""Seconds an image takes, by its steps and whether guidance runs the model twice."""

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
"""Robust deviations beyond which an image is down-weighted (Huber 1964): the first one also loads the model."""
OUTLIER: Final = 4.0


@dataclass(frozen=True)
class TimeModel:
    """Seconds an image: `base` + steps · `a_step`, and steps · `guided_step` more where guidance is on.

    `drawn` (draws, 3) are refits to resampled images; `n` were timed, `outliers` of them far off the line.
    """

    coefficients: Floats
    refits: Floats
    n: int
    r2: float | None
    outliers: int
    note: str | None

    def predict(self, steps: Floats, guidance: Floats) -> Floats:
        """Return (m,) seconds at settings (m,)."""
        return np.maximum(_time_columns(steps, guidance) @ self.coefficients, 0.0)

    def predict_draws(self, steps: Floats, guidance: Floats) -> Floats:
        """Return (draws, m) the same of every refit."""
        return np.maximum(self.refits @ _time_columns(steps, guidance).T, 0.0)


def fit_times(rows: pl.DataFrame, seed: int = 0) -> TimeModel | None:
    """Return one engine's time model; None where no times are recorded."""
    timed = rows.drop_nulls(["elapsed_ms", "steps"])
    n = timed.height
    if not n:
        return None
    steps, guidance = float_column(timed, "steps"), float_column(timed, "guidance")
    seconds = float_column(timed, "elapsed_ms") / 1000
    columns, notes = _time_columns(steps, guidance), []
    guided = guidance > 1
    has_both = min(guided.sum(), (~guided).sum()) >= MIN_IMAGES and bool(np.isfinite(guidance).any())
    used = [0]
    if np.ptp(steps) > 0:
        used += [1, 2] if has_both else [1]
    else:
        notes.append("steps is constant")
    if n <= len(used):
        notes.append(f"too few images were timed ({n})")
        used = [0]
    weights, residuals, scale = _huber_weights(columns[:, used], seconds)
    pools = np.random.default_rng(seed).permutation(n) % min(n, MAX_CLUSTERS)
    bootstrap_weights = np.random.default_rng(seed).exponential(size=(BOOTSTRAP_DRAWS, pools.max() + 1))
    refits_used = []
    for counts in bootstrap_weights:
        weighted = columns[:, used] * (weights * counts[pools])[:, None]
        refits_used.append(np.linalg.lstsq(weighted.T @ columns[:, used], weighted.T @ seconds, rcond=None)[0])
    coefficients_full, refit_coefficients = np.zeros(3), np.zeros((BOOTSTRAP_DRAWS, 3))
    weighted = columns[:, used] * weights[:, None]
    coefficients_full[used] = np.linalg.lstsq(weighted.T @ columns[:, used], weighted.T @ seconds, rcond=None)[0]
    refit_coefficients[:, used] = refits_used
    outliers = int((np.abs(residuals) > OUTLIER * scale).sum()) if scale > 0 else 0
    if outliers:
        notes.append(f"{outliers} outlying times count less")
    total = float(((seconds - np.average(seconds, weights=weights)) ** 2 * weights).sum())
    r2 = 1 - float((residuals**2 * weights).sum()) / total if total > 0 and len(used) > 1 else None
    return TimeModel(coefficients_full, refit_coefficients, n, r2, outliers, "; ".join(notes) or None)


def times_table(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Return the seconds an image takes: a `base`, `a_step`, and `guided_step` more a step where guidance is on.

    95 % intervals are a bootstrap over images. `guided_step` is null where too few images have guidance on or off;
    `a_step` is then that of all images. Returns `TIMES_SCHEMA`, a row an engine.
    """
    rows_found: list[Row] = []
    for engine, rows in split_by_engine(measured_images(scores)):
        fitted = fit_times(rows, seed)
        if fitted is None:
            rows_found.append({"engine": engine, "n": 0, "note": "no times are recorded"})
            continue
        row: Row = {"engine": engine, "n": fitted.n, "r2": fitted.r2, "outliers": fitted.outliers, "note": fitted.note}
        lows, highs = np.quantile(fitted.refits, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], axis=0)
        for name, value, low, high in zip(
            ("base", "a_step", "guided_step"), fitted.coefficients, lows, highs, strict=True
        ):
            if value or name == "base":
                row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
        rows_found.append(row)
    return make_frame(rows_found, TIMES_SCHEMA)


def _time_columns(steps: Floats, guidance: Floats) -> Floats:
    return np.stack([np.ones_like(steps), steps, steps * (guidance > 1)], axis=-1)


def _huber_weights(columns: Floats, seconds: Floats) -> tuple[Floats, Floats, float]:
    """Return (n,) weights and residuals of Huber's regression by reweighting, and the residuals' robust deviation."""
    weights = np.ones(len(seconds))
    for _ in range(20):
        weighted = columns * weights[:, None]
        coefficients = np.linalg.lstsq(weighted.T @ columns, weighted.T @ seconds, rcond=None)[0]
        residuals = seconds - columns @ coefficients
        scale = float(np.median(np.abs(residuals))) / 0.6745
        if scale <= 1e-9 * max(float(np.abs(seconds).max()), 1e-300):
            break
        weights = np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-300))
    return weights, residuals, scale
