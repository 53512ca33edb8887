"""What the scores say: how metrics move together, with steps and guidance, and which settings to use.

Every function takes one row an image (`SCORES`) and returns a frame with a declared schema. None raises
for thin data: too few images, a column that never varies or a missing score become a null and a `note`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

METRICS: Final[dict[str, str]] = {
    "clip_score": "CLIP score",
    "aesthetic_score": "Aesthetic V1",
    "aes_v2_score": "Aesthetic V2",
    "hps_v2_score": "HPS v2.1",
}
SETTINGS: Final[dict[str, str]] = {"steps": "Steps", "guidance": "Guidance", "elapsed_ms": "Time"}

SCORES: Final[dict[str, pl.DataType]] = {
    "image_id": pl.String(),
    "run_id": pl.String(),
    "batch": pl.String(),
    "engine": pl.String(),
    "prompt": pl.String(),
    "steps": pl.Int64(),
    "guidance": pl.Float64(),
    "seed": pl.Int64(),
    "elapsed_ms": pl.Int64(),
    "image_path": pl.String(),
    **dict.fromkeys(METRICS, pl.Float64()),
}
CORRELATIONS: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "left": pl.String(),
    "right": pl.String(),
    "n": pl.Int64(),
    "pearson": pl.Float64(),
    "pearson_low": pl.Float64(),
    "pearson_high": pl.Float64(),
    "spearman": pl.Float64(),
    "spearman_low": pl.Float64(),
    "spearman_high": pl.Float64(),
    "note": pl.String(),
}
REGRESSION: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "metric": pl.String(),
    "model": pl.String(),
    "n": pl.Int64(),
    "folds_by": pl.String(),
    "r2": pl.Float64(),
    "rmse": pl.Float64(),
    "chosen": pl.Boolean(),
    "coefficients": pl.List(pl.Struct({"term": pl.String(), "value": pl.Float64()})),
    "steps_mean": pl.Float64(),
    "steps_std": pl.Float64(),
    "guidance_mean": pl.Float64(),
    "guidance_std": pl.Float64(),
    "note": pl.String(),
}
SPOTS: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "target": pl.String(),
    "n": pl.Int64(),
    "steps": pl.Int64(),
    "guidance": pl.Float64(),
    "predicted": pl.Float64(),
    "seconds": pl.Float64(),
    "steps_low": pl.Int64(),
    "steps_high": pl.Int64(),
    "guidance_low": pl.Float64(),
    "guidance_high": pl.Float64(),
    "note": pl.String(),
}

TERMS: Final = ("intercept", "log2_steps", "guidance", "log2_steps^2", "guidance^2", "log2_steps*guidance")
MODELS: Final[dict[str, int]] = {"mean": 1, "linear": 3, "quadratic": 6}
"""How many of `TERMS` each model has, simplest first."""

FOLDS: Final = 5
LEAST_IMAGES: Final = 10
"""Below this many images no model is tried: five folds would hold one image each."""
CORRELATION_DRAWS: Final = 500
SPOT_DRAWS: Final = 100
VALUE_TOLERANCE: Final = 0.1
"""What the value setting may lose against the best, in standard deviations between images (a small effect
is 0.2 by Cohen's convention; half of it is hard to see)."""
FLAT: Final = "does not move with steps or guidance"


def measured(scores: pl.DataFrame) -> pl.DataFrame:
    """The columns of `SCORES` in their dtypes, by engine and image; NaN and infinity become missing."""
    finite = [
        pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name)
        for name, dtype in SCORES.items()
        if dtype == pl.Float64
    ]
    return (
        scores.select(pl.col(name).cast(dtype, strict=False) for name, dtype in SCORES.items())
        .with_columns(*finite, pl.col("engine").fill_null("unknown"))
        .sort("engine", "image_id")
    )


def effective_guidance(guidance: ArrayLike) -> Floats:
    """Guidance as diffusers applies it: switched off at 1 and below, so 0.5 and 1.0 make the same image."""
    return np.maximum(np.asarray(guidance, dtype=np.float64), 1.0)


def with_overall(scores: pl.DataFrame) -> pl.DataFrame:
    """`measured(scores)` and `overall`: the mean of an image's z-scores within its engine; null without."""
    zs = []
    for metric in METRICS:
        spread = pl.col(metric).std().over("engine")
        z = (pl.col(metric) - pl.col(metric).mean().over("engine")) / spread
        zs.append(pl.when(spread > 0).then(z))
    return measured(scores).with_columns(pl.mean_horizontal(*zs).alias("overall"))


def correlations(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Pearson and Spearman with 95 % intervals for every two metrics and every setting with every metric.

    Pearson's interval is Fisher's z; Spearman's is the percentile bootstrap over images, ranks drawn anew.
    Both take images as independent, so with few prompts they are too narrow. Guidance is the effective one.
    Returns `CORRELATIONS`.
    """
    pairs = [*combinations(METRICS, 2), *((setting, metric) for setting in SETTINGS for metric in METRICS)]
    found = []
    for engine, rows in _engines(scores):
        rng = np.random.default_rng(seed)
        columns = {name: _floats(rows, name) for name in (*METRICS, *SETTINGS)}
        columns["guidance"] = effective_guidance(columns["guidance"])
        for left, right in pairs:
            both = np.isfinite(columns[left]) & np.isfinite(columns[right])
            pair = _correlation(columns[left][both], columns[right][both], rng)
            found.append({"engine": engine, "left": left, "right": right, **pair})
    return _frame(found, CORRELATIONS)


def regression(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Each metric on standardised log2(steps) and effective guidance: a mean, a plane, a quadratic surface.

    `r2` and `rmse` are out of fold: five folds, whole prompts left out where there are five or more, against
    the mean of the same training folds, so `r2` is below 0 where a model is worse than no model. `chosen` is
    the simplest model whose error is within one standard error of the best one's (Breiman et al. 1984),
    which keeps a flat metric from being called otherwise by luck. `coefficients` are refitted on all images.
    Returns `REGRESSION`, three rows an engine and metric.
    """
    found = []
    for engine, rows in _engines(scores):
        for metric in METRICS:
            usable = rows.drop_nulls([metric, "steps", "guidance"])
            found += [{"engine": engine, "metric": metric, **row} for row in _models(usable, metric, seed)]
    return _frame(found, REGRESSION)


def predict(model_row: Mapping[str, Any], steps: ArrayLike, guidance: ArrayLike) -> Floats:
    """The metric that one row of `regression` expects at these settings (broadcast); NaN without a fit."""
    values = np.zeros(len(TERMS))
    for coefficient in model_row["coefficients"] or []:
        values[TERMS.index(coefficient["term"])] = coefficient["value"]
    if not model_row["coefficients"]:
        values[:] = np.nan
    return np.asarray(_design(steps, guidance, model_row) @ values)


def sweet_spots(scores: pl.DataFrame, regression: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """The best predicted settings for each metric, for all together ("overall") and for the time ("value").

    Looked for on a grid inside the range that was tried. "overall" is the mean, over the metrics that move,
    of the predicted score in standard deviations from that metric's mean image; "value" is the quickest
    setting whose overall prediction is at most `VALUE_TOLERANCE` below the best. `predicted` is in the
    metric's own unit, or in those standard deviations. `seconds` an image come from a straight line in
    steps. Low and high are the 5th and 95th percentile of the best setting over refits to resampled images.
    Returns `SPOTS`.
    """
    chosen = {
        (row["engine"], row["metric"]): row for row in regression.filter("chosen").iter_rows(named=True)
    }
    found = []
    for engine, rows in _engines(scores):
        models = {metric: chosen[engine, metric] for metric in METRICS if (engine, metric) in chosen}
        found += [{"engine": engine, **row} for row in _spots(rows, models, seed)]
    return _frame(found, SPOTS)


def _engines(scores: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    for rows in measured(scores).partition_by("engine", maintain_order=True):
        if rows.height:
            yield rows["engine"][0], rows


def _floats(rows: pl.DataFrame, name: str) -> Floats:
    return rows[name].cast(pl.Float64).fill_null(np.nan).to_numpy()


def _frame(rows: list[dict[str, Any]], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    floats = [name for name, dtype in schema.items() if dtype == pl.Float64]
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col(floats).fill_nan(None))


def _correlation(x: Floats, y: Floats, rng: np.random.Generator) -> dict[str, Any]:
    n = len(x)
    if n < 4:
        return {"n": n, "note": f"too few images with both ({n})"}
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"n": n, "note": "one of the two never varies"}
    pearson = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    with np.errstate(divide="ignore"):  # arctanh(±1) is ±inf, and tanh brings it back to ±1
        low, high = np.tanh(np.arctanh(pearson) + np.array([-1.96, 1.96]) / np.sqrt(n - 3))
    draws = []
    at_once = max(1, 2_000_000 // n)
    for start in range(0, CORRELATION_DRAWS, at_once):
        counts = _resamples(n, min(at_once, CORRELATION_DRAWS - start), rng)
        draws.append(_spearman(x, y, counts))
    drawn = np.concatenate(draws)
    drawn = drawn[np.isfinite(drawn)]
    spearman_low, spearman_high = np.quantile(drawn, [0.025, 0.975]) if drawn.size else (np.nan, np.nan)
    return {
        "n": n,
        "pearson": pearson,
        "pearson_low": float(low),
        "pearson_high": float(high),
        "spearman": float(_spearman(x, y, np.ones((1, n)))[0]),
        "spearman_low": float(spearman_low),
        "spearman_high": float(spearman_high),
        "note": None,
    }


def _resamples(n: int, draws: int, rng: np.random.Generator) -> Floats:
    """(draws, n): how often each of n images is drawn when n are drawn with replacement."""
    picks = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _spearman(x: Floats, y: Floats, counts: Floats) -> Floats:
    """(draws,) Spearman's rho of resamples given as (draws, n) counts; NaN where a resample is constant."""
    rank_x, rank_y = _ranks(x, counts), _ranks(y, counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = np.einsum("bn,bn,bn->b", counts, rank_x, rank_y)
        spread = np.einsum("bn,bn,bn->b", counts, rank_x, rank_x) * np.einsum(
            "bn,bn,bn->b", counts, rank_y, rank_y
        )
        rho: Floats = np.clip(covariance / np.sqrt(spread), -1, 1)
        return rho


def _ranks(values: Floats, counts: Floats) -> Floats:
    """(draws, n) centred mid-ranks within each resample, without sorting any: ranks are running counts."""
    _, first, tie = np.unique(np.sort(values), return_index=True, return_inverse=True)
    order = np.argsort(values, kind="stable")
    in_tie = np.add.reduceat(counts[:, order], first, axis=1)
    middle = np.cumsum(in_tie, axis=1) - (in_tie - 1) / 2
    ranks = np.empty_like(counts)
    ranks[:, order] = middle[:, tie] - (counts.sum(axis=1, keepdims=True) + 1) / 2
    return ranks


def _design(steps: ArrayLike, guidance: ArrayLike, scaling: Mapping[str, Any]) -> Floats:
    """(..., 6) the columns named by `TERMS`."""
    log_steps = np.log2(np.maximum(np.asarray(steps, dtype=np.float64), 1))
    s, g = np.broadcast_arrays(
        (log_steps - scaling["steps_mean"]) / scaling["steps_std"],
        (effective_guidance(guidance) - scaling["guidance_mean"]) / scaling["guidance_std"],
    )
    return np.stack([np.ones_like(s), s, g, s * s, g * g, s * g], axis=-1)


def _scaling(steps: Floats, guidance: Floats) -> dict[str, float]:
    scaling = {}
    for name, column in (
        ("steps", np.log2(np.maximum(steps, 1))),
        ("guidance", effective_guidance(guidance)),
    ):
        varies = column.size > 0 and np.ptp(column) > 0
        scaling[f"{name}_mean"] = float(column.mean()) if varies else float(column[0]) if column.size else 0.0
        scaling[f"{name}_std"] = float(column.std()) if varies else 1.0
    return scaling


def _least_squares(design: Floats, y: Floats) -> Floats:
    """Coefficients; the shortest ones where columns repeat each other (two guidances make no parabola)."""
    return np.asarray(np.linalg.lstsq(design, y, rcond=None)[0])


def _models(rows: pl.DataFrame, metric: str, seed: int) -> list[dict[str, Any]]:
    y, steps, guidance = (_floats(rows, name) for name in (metric, "steps", "guidance"))
    n = len(y)
    scaling = _scaling(steps, guidance)
    design = _design(steps, guidance, scaling)
    notes = [
        f"{name} never varies"
        for name, column in (("steps", steps), ("guidance", effective_guidance(guidance)))
        if n and np.ptp(column) == 0
    ]
    chosen, folds_by = "mean", None
    r2: dict[str, float] = {}
    rmse: dict[str, float] = {}
    if n < LEAST_IMAGES:
        notes.insert(0, f"too few images ({n}; {LEAST_IMAGES} needed)")
    elif np.ptp(y) == 0:
        notes.insert(0, "every image has the same score")
    else:
        folds, folds_by = _folds(rows["prompt"], seed)
        errors = {model: np.empty(n) for model in MODELS}
        for fold in range(FOLDS):
            train, test = folds != fold, folds == fold
            for model, terms in MODELS.items():
                fit = _least_squares(design[train, :terms], y[train])
                errors[model][test] = (y[test] - design[test, :terms] @ fit) ** 2
        # The mean model predicts the training folds' mean: its error is R²'s denominator.
        r2 = {model: float(1 - error.sum() / errors["mean"].sum()) for model, error in errors.items()}
        rmse = {model: float(np.sqrt(error.mean())) for model, error in errors.items()}
        chosen = _simplest(errors)
    fits = {
        model: _least_squares(design[:, :terms], y) if n else np.empty(0) for model, terms in MODELS.items()
    }
    return [
        {
            "model": model,
            "n": n,
            "folds_by": folds_by,
            "r2": r2.get(model),
            "rmse": rmse.get(model),
            "chosen": model == chosen,
            "coefficients": [
                {"term": term, "value": float(value)} for term, value in zip(TERMS, fit, strict=False)
            ],
            **scaling,
            "note": "; ".join(notes) or None,
        }
        for model, fit in fits.items()
    ]


def _folds(prompts: pl.Series, seed: int) -> tuple[NDArray[np.intp], str]:
    """Each image's fold, and what folds keep together: a prompt seen in training would flatter a model."""
    groups = prompts.rank("dense").fill_null(0).to_numpy()
    by = "prompt" if len(np.unique(groups)) >= FOLDS else "image"
    together = np.unique(groups if by == "prompt" else np.arange(len(groups)), return_inverse=True)[1]
    shuffled = np.random.default_rng(seed).permutation(together.max() + 1)
    return shuffled[together] % FOLDS, by


def _simplest(errors: Mapping[str, Floats]) -> str:
    """The first model whose squared errors are within one (paired) standard error of the best model's."""
    best = min(errors, key=lambda model: float(errors[model].mean()))
    rounding = 1e-9 * errors["mean"].mean()
    for model, error in errors.items():
        excess = error - errors[best]
        if excess.mean() <= excess.std(ddof=1) / np.sqrt(len(excess)) + rounding:
            return model
    return best


def _spots(rows: pl.DataFrame, models: Mapping[str, Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    complete = rows.drop_nulls(["steps", "guidance"])
    moving = [
        metric for metric, model in models.items() if model["model"] != "mean" and complete[metric].count()
    ]
    found: list[dict[str, Any]] = []
    for metric in METRICS:
        if metric not in moving:
            model = models.get(metric)
            note = (model and model["note"]) or FLAT
            found.append({"target": metric, "n": model["n"] if model else 0, "note": note})
    if not moving:
        note = "no metric moves with steps or guidance"
        return found + [
            {"target": target, "n": complete.height, "note": note} for target in ("overall", "value")
        ]

    steps, guidance = (_floats(complete, name) for name in ("steps", "guidance"))
    grid_steps, grid_guidance = _grid(steps, guidance)
    seconds = _seconds(complete, grid_steps, grid_guidance)
    counts = _resamples(complete.height, SPOT_DRAWS, np.random.default_rng(seed))

    overall = np.zeros(len(grid_steps))
    overall_draws = np.zeros((SPOT_DRAWS, len(grid_steps)))
    best: dict[str, tuple[int, NDArray[np.intp], Floats]] = {}
    for metric in moving:
        y = _floats(complete, metric)
        predicted = predict(models[metric], grid_steps, grid_guidance)
        draws = _refits(y, steps, guidance, models[metric], counts, grid_steps, grid_guidance)
        best[metric] = int(predicted.argmax()), draws.argmax(axis=1), predicted
        overall += (predicted - np.nanmean(y)) / np.nanstd(y) / len(moving)
        overall_draws += (draws - np.nanmean(y)) / np.nanstd(y) / len(moving)
    best["overall"] = int(overall.argmax()), overall_draws.argmax(axis=1), overall
    # Without times the fewest steps stand in for the fewest seconds.
    cost = grid_steps if seconds is None else seconds
    best["value"] = int(_cheapest(overall[None], cost)[0]), _cheapest(overall_draws, cost), overall

    for target, (at, drawn, predicted) in best.items():
        steps_low, steps_high = np.quantile(grid_steps[drawn], [0.05, 0.95]).round().astype(int)
        guidance_low, guidance_high = np.quantile(grid_guidance[drawn], [0.05, 0.95])
        notes = [
            f"at the edge of the {name} tried"
            for name, axis in (("steps", grid_steps), ("guidance", grid_guidance))
            if target != "value" and axis.min() < axis.max() and axis[at] in (axis.min(), axis.max())
        ]
        if target in ("overall", "value"):
            notes.insert(0, "over " + ", ".join(METRICS[metric] for metric in moving))
        found.append(
            {
                "target": target,
                "n": models[target]["n"] if target in models else complete.height,
                "steps": int(grid_steps[at]),
                "guidance": float(grid_guidance[at]),
                "predicted": float(predicted[at]),
                "seconds": None if seconds is None else float(seconds[at]),
                "steps_low": int(steps_low),
                "steps_high": int(steps_high),
                "guidance_low": float(guidance_low),
                "guidance_high": float(guidance_high),
                "note": "; ".join(notes) or None,
            }
        )
    order = [*METRICS, "overall", "value"]
    return sorted(found, key=lambda row: order.index(row["target"]))


def _grid(steps: Floats, guidance: Floats) -> tuple[Floats, Floats]:
    """Two flat arrays, every pair of whole steps and guidance to 0.01 within the range that was tried."""
    low, high = steps.min(), steps.max()
    whole = np.unique(np.geomspace(max(low, 1), max(high, 1), 60).round())
    effective = effective_guidance(guidance)
    fine = np.unique(np.linspace(effective.min(), effective.max(), 45).round(2))
    pairs = np.meshgrid(whole, np.clip(fine, effective.min(), effective.max()), indexing="ij")
    return pairs[0].ravel(), pairs[1].ravel()


def _seconds(rows: pl.DataFrame, grid_steps: Floats, grid_guidance: Floats) -> Floats | None:
    """Seconds an image on the grid: a line in steps, a second slope where guidance runs the model twice."""
    timed = rows.drop_nulls("elapsed_ms")
    if not timed.height:
        return None
    steps, guidance, elapsed = (_floats(timed, name) for name in ("steps", "guidance", "elapsed_ms"))
    columns = [np.ones_like(steps), steps]
    grid = [np.ones_like(grid_steps), grid_steps]
    if min((guidance > 1).sum(), (guidance <= 1).sum()) >= LEAST_IMAGES:
        columns.append(steps * (guidance > 1))
        grid.append(grid_steps * (grid_guidance > 1))
    fit = _least_squares(np.stack(columns, axis=1), elapsed / 1000)
    return np.maximum(np.stack(grid, axis=1) @ fit, 0.0)


def _refits(
    y: Floats,
    steps: Floats,
    guidance: Floats,
    model: Mapping[str, Any],
    counts: Floats,
    grid_steps: Floats,
    grid_guidance: Floats,
) -> Floats:
    """(draws, grid) predictions of the chosen model refitted to each resample by its normal equations."""
    terms = MODELS[model["model"]]
    scored = np.isfinite(y)
    design = _design(steps, guidance, model)[scored, :terms]
    weights = counts[:, scored]
    squares = weights @ (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    inverse = np.linalg.pinv(squares.reshape(-1, terms, terms), rcond=1e-10, hermitian=True)
    fits = np.einsum("bpq,bq->bp", inverse, weights @ (design * y[scored, None]))
    return np.asarray(fits @ _design(grid_steps, grid_guidance, model)[:, :terms].T)


def _cheapest(overall: Floats, cost: Floats) -> NDArray[np.intp]:
    """(draws,) the cheapest grid point close enough to each row's best; among equals, the best one."""
    near = overall >= overall.max(axis=1, keepdims=True) - VALUE_TOLERANCE
    least = np.where(near, cost, np.inf).min(axis=1, keepdims=True)
    return np.asarray(np.where(near & (cost <= least), overall, -np.inf).argmax(axis=1))
