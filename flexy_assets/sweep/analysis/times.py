"""Seconds an image takes, by its steps and whether guidance runs the model twice."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from flexy_assets.sweep.analysis.clusters import BOOTSTRAP_DRAWS, CONFIDENCE_LEVEL, MAX_CLUSTERS
from flexy_assets.sweep.analysis.rows import MIN_IMAGES, Floats, Row, float_column, make_frame, split_by_engine
from flexy_assets.sweep.analysis.schemas import TIMES_SCHEMA

HUBER: Final = 1.345
"""Robust deviations beyond which an image is down-weighted (Huber 1964): the first one also loads the model."""
OUTLIER: Final = 4.0
HEAP_SHARE: Final = 0.1
HEAP_RATIO: Final = 1.2
HEAP_DISTANCE: Final = 4.0
"""What makes two heaps of times; the halves of a uniform distribution are 3.5 deviations apart, of a normal one 2.6."""


@dataclass(frozen=True)
class TimeModel:
    """Seconds an image: `base` + steps · `a_step`, and steps · `guided_step` more where guidance is on.

    `refits` (draws, 3) are those to resampled images; `n` were timed, `outliers` of them far off the line.
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
    coefficients, refits = np.zeros(3), np.zeros((BOOTSTRAP_DRAWS, 3))
    coefficients[used] = _weighted_fit(columns[:, used], seconds, weights)
    grams = np.zeros((pools.max() + 1, len(used), len(used) + 1))
    with_seconds = np.column_stack([columns[:, used], seconds])
    np.add.at(grams, pools, (columns[:, used] * weights[:, None])[:, :, None] * with_seconds[:, None, :])
    drawn = np.tensordot(bootstrap_weights, grams, axes=1)
    refits[:, used] = np.einsum("dij,dj->di", np.linalg.pinv(drawn[:, :, :-1], hermitian=True), drawn[:, :, -1])
    outliers = int((np.abs(residuals) > OUTLIER * scale).sum()) if scale > 0 else 0
    if outliers:
        notes.append(f"{outliers} outlying times count less")
    total = float(((seconds - np.average(seconds, weights=weights)) ** 2 * weights).sum())
    r2 = 1 - float((residuals**2 * weights).sum()) / total if total > 0 and len(used) > 1 else None
    return TimeModel(coefficients, refits, n, r2, outliers, "; ".join(notes) or None)


def times_table(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Return the seconds an image takes: a `base`, `a_step`, and `guided_step` more a step where guidance is on.

    95 % intervals are a bootstrap over images. `guided_step` is null where too few images have guidance on or off;
    `a_step` is then that of all images. Returns `TIMES_SCHEMA`, a row an engine.
    """
    times: list[Row] = []
    for engine, rows in split_by_engine(scores):
        fitted = fit_times(rows, seed)
        if fitted is None:
            times.append({"engine": engine, "n": 0, "note": "no times are recorded"})
            continue
        row: Row = {"engine": engine, "n": fitted.n, "r2": fitted.r2, "outliers": fitted.outliers, "note": fitted.note}
        lows, highs = np.quantile(fitted.refits, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], axis=0)
        for column, name in enumerate(("base", "a_step", "guided_step")):
            if fitted.coefficients[column] or name == "base":
                row |= {name: fitted.coefficients[column], f"{name}_low": lows[column], f"{name}_high": highs[column]}
        times.append(row)
    return make_frame(times, TIMES_SCHEMA)


def _time_columns(steps: Floats, guidance: Floats) -> Floats:
    return np.stack([np.ones_like(steps), steps, steps * (guidance > 1)], axis=-1)


def _weighted_fit(columns: Floats, seconds: Floats, weights: Floats) -> Floats:
    """Return (p,) coefficients of the least squares under weights (n,)."""
    weighted = columns * weights[:, None]
    return np.asarray(np.linalg.lstsq(weighted.T @ columns, weighted.T @ seconds, rcond=None)[0])


def _huber_weights(columns: Floats, seconds: Floats) -> tuple[Floats, Floats, float]:
    """Return (n,) weights and residuals of Huber's regression by reweighting, and the residuals' robust deviation."""
    weights = np.ones(len(seconds))
    for _ in range(20):
        residuals = seconds - columns @ _weighted_fit(columns, seconds, weights)
        scale = float(np.median(np.abs(residuals))) / 0.6745
        if scale <= 1e-9 * max(float(np.abs(seconds).max()), 1e-300):
            break
        weights = np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-300))
    return weights, residuals, scale


@dataclass(frozen=True)
class TimeHeaps:
    """Images of one engine whose times fall in two heaps: `slow` of `n` images take `ratio` times as long as the rest.

    `by` is "sweep", "size" or "scheduler" where each of its values lies in one heap, and `models` are then theirs.
    """

    slow: int
    n: int
    ratio: float
    by: str | None
    models: dict[str, TimeModel]


def find_time_heaps(rows: pl.DataFrame) -> TimeHeaps | None:
    """Return the two heaps in which one engine's times lie around its time model; None where they lie in one.

    Two heaps are apart by `HEAP_RATIO` or more and by `HEAP_DISTANCE` deviations within them, and hold `HEAP_SHARE` of
    the images each.
    """
    model = fit_times(rows)
    timed = rows.drop_nulls(["elapsed_ms", "steps"]).filter(pl.col("elapsed_ms") > 0)
    if model is None or timed.height < 2 * MIN_IMAGES:
        return None
    expected = model.predict(float_column(timed, "steps"), float_column(timed, "guidance"))
    residuals = np.log(float_column(timed, "elapsed_ms") / 1000 / np.maximum(expected, 1e-9))
    ordered, n = np.sort(residuals), timed.height
    left = np.arange(max(int(n * HEAP_SHARE), 1), n - int(n * HEAP_SHARE) + 1)
    below = np.cumsum(ordered)[left - 1]
    # Otsu's threshold: the split with the largest variance between its parts.
    means = below / left, (ordered.sum() - below) / np.maximum(n - left, 1)
    split = int(left[(left * (n - left) * (means[1] - means[0]) ** 2).argmax()])
    fast, slow = ordered[:split], ordered[split:]
    distance = float(slow.mean() - fast.mean())
    spread = float(np.sqrt((fast.var() + slow.var()) / 2))
    if distance < np.log(HEAP_RATIO) or distance < HEAP_DISTANCE * spread:
        return None
    heaps = timed.with_columns(
        slow=pl.Series(residuals) > ordered[split - 1], size=pl.format("{}×{}", "width", "height")
    )
    for by, column in (("sweep", "run_id"), ("size", "size"), ("scheduler", "scheduler")):
        groups = [(str(name), part) for (name,), part in heaps.drop_nulls(column).group_by(column, maintain_order=True)]
        shares = [float(part["slow"].to_numpy().mean()) for _, part in groups]
        if len(groups) > 1 and all(min(share, 1 - share) < HEAP_SHARE for share in shares):
            models = {name: fitted for name, part in groups if (fitted := fit_times(part))}
            return TimeHeaps(n - split, n, float(np.exp(distance)), by, models)
    return TimeHeaps(n - split, n, float(np.exp(distance)), None, {})
