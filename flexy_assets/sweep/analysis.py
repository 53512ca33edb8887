"""What the scores say: how metrics move together, with steps and guidance, and which settings to use.

Every function takes one row an image (`SCORES`) and returns a frame with a declared schema. None raises
for thin data: too few images, a column that never varies or a missing score become a null and a `note`.
scikit-learn and scipy are loaded where they are used, so that the report and Dagster need not wait for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from flexy_assets.storage import queries
from flexy_assets.sweep.trial import run_of
from resources.models import registry

Floats = NDArray[np.float64]

METRICS: Final[dict[str, str]] = {metric.name: metric.label for metric in registry.METRICS.values()}
SETTINGS: Final[dict[str, str]] = {"steps": "Steps", "guidance": "Guidance", "elapsed_ms": "Time"}

SCORES: Final = queries.SCORES_SCHEMA
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

TERMS: Final = ("intercept", "log2_steps", "guidance", "log2_steps^2", "log2_steps*guidance", "guidance^2")
"""A quadratic surface's coefficients in scikit-learn's order; the simpler models have the first 3 or 1."""
MODELS: Final[dict[str, int]] = {"mean": 0, "linear": 1, "quadratic": 2}
"""Degree of each model's polynomial, simplest first."""

FOLDS: Final = 5
LEAST_IMAGES: Final = 10
"""Below this many images no model is tried: five folds would hold one image each."""
CORRELATION_DRAWS: Final = 500
SPOT_DRAWS: Final = 100
VALUE_TOLERANCE: Final = 0.1
"""What the value setting may lose against the best, in standard deviations between images (a small effect
is 0.2 by Cohen's convention; half of it is hard to see)."""
NO_GUIDANCE: Final = "the engine has no guidance"


def measured(scores: pl.DataFrame) -> pl.DataFrame:
    """The columns of `SCORES` in their dtypes, by engine and image; NaN and infinity become missing.

    Trials are left out: where a person tries settings until one pleases, images are no sample of what settings do.
    """
    floats = pl.col(pl.Float64)
    trials = [str(run_of(engine)) for engine in scores["engine"].unique().drop_nulls()]
    return (
        scores.filter(~pl.col("run_id").is_in(trials).fill_null(False))
        .select(pl.col(name).cast(dtype, strict=False) for name, dtype in SCORES.items())
        .with_columns(pl.when(floats.is_finite()).then(floats), pl.col("engine").fill_null("unknown"))
        .sort("engine", "image_id")
    )


def tried(rows: pl.DataFrame) -> list[str]:
    """The settings of one engine's images: `steps` and `guidance`, or `steps` alone where no image has a guidance."""
    return ["steps", "guidance"] if rows["guidance"].count() else ["steps"]


def effective_guidance(guidance: ArrayLike) -> Floats:
    """Guidance as diffusers applies it: switched off at 1 and below, so 0.5 and 1.0 make the same image.

    NaN stays: it is no guidance at all.
    """
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
    """Pearson and Spearman with 95 % intervals for every two metrics and every setting there is with every metric.

    Pearson's interval is Fisher's z; Spearman's is the percentile bootstrap over images, ranked anew.
    Both take images as independent, so with few prompts they are too narrow. Guidance is the effective one.
    Returns `CORRELATIONS`.
    """
    found = []
    for engine, rows in _engines(scores):
        pairs = [*combinations(METRICS, 2), *product([*tried(rows), "elapsed_ms"], METRICS)]
        columns = {name: _floats(rows, name) for name in (*METRICS, *SETTINGS)}
        columns["guidance"] = effective_guidance(columns["guidance"])
        for left, right in pairs:
            both = np.isfinite(columns[left]) & np.isfinite(columns[right])
            pair = _correlation(columns[left][both], columns[right][both], seed)
            found.append({"engine": engine, "left": left, "right": right, **pair})
    return _frame(found, CORRELATIONS)


def regression(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Each metric on standardised log2(steps) and effective guidance: a mean, a plane, a quadratic surface.

    `r2` and `rmse` are out of fold: five folds, whole prompts left out where there are five or more, against
    the mean of the same training folds, so `r2` is below 0 where a model is worse than no model. `chosen` is
    the simplest model whose error is within one standard error of the best one's (Breiman et al. 1984),
    which keeps a flat metric from being called otherwise by luck. `coefficients` are refitted on all images.
    An engine without guidance is one that never varies it. Returns `REGRESSION`, three rows an engine and metric.
    """
    found = []
    for engine, rows in _engines(scores):
        settings = tried(rows)
        for metric in METRICS:
            usable = rows.drop_nulls([metric, *settings])
            found += [{"engine": engine, "metric": metric, **row} for row in _models(usable, metric, settings, seed)]
    return _frame(found, REGRESSION)


def predict(model_row: Mapping[str, Any], steps: ArrayLike, guidance: ArrayLike) -> Floats:
    """The metric that one row of `regression` expects at these settings (broadcast); NaN without a fit.

    For an engine without guidance, NaN is its guidance.
    """
    values = [coefficient["value"] for coefficient in model_row["coefficients"] or []]
    if not values:
        return np.full(np.broadcast(steps, guidance).shape, np.nan)
    return np.asarray(_design(steps, guidance, model_row)[..., : len(values)] @ np.array(values))


def sweet_spots(scores: pl.DataFrame, regression: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """The best predicted settings for each metric, for all together ("overall") and for the time ("value").

    Looked for on a grid inside the range that was tried. "overall" is the mean, over the metrics that move,
    of the predicted score in standard deviations from that metric's mean image; "value" is the quickest
    setting whose overall prediction is at most `VALUE_TOLERANCE` below the best. `predicted` is in the
    metric's own unit, or in those standard deviations. `seconds` an image come from a straight line in
    steps. Low and high are the 5th and 95th percentile of the best setting over refits to resampled images.
    Guidance is null where the engine has none. Returns `SPOTS`.
    """
    chosen = {(row["engine"], row["metric"]): row for row in regression.filter("chosen").iter_rows(named=True)}
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
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))


def _correlation(x: Floats, y: Floats, seed: int) -> dict[str, Any]:
    from scipy.stats import bootstrap, pearsonr, rankdata, spearmanr

    def spearman(x: Floats, y: Floats, axis: int) -> Any:
        return pearsonr(rankdata(x, axis=axis), rankdata(y, axis=axis), axis=axis).statistic

    n = len(x)
    if n < 4:
        return {"n": n, "note": f"too few images with both ({n})"}
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"n": n, "note": "one of the two never varies"}
    pearson = pearsonr(x, y)
    interval = pearson.confidence_interval(0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample that never varies has no correlation and is left out
        resampled = bootstrap(
            (x, y),
            spearman,
            n_resamples=CORRELATION_DRAWS,
            batch=50,
            paired=True,
            vectorized=True,
            method="percentile",
            rng=seed,
        )
        low, high = np.nanquantile(resampled.bootstrap_distribution, [0.025, 0.975])
    return {
        "n": n,
        "pearson": float(pearson.statistic),
        "pearson_low": float(interval.low),
        "pearson_high": float(interval.high),
        "spearman": float(spearmanr(x, y).statistic),
        "spearman_low": float(low),
        "spearman_high": float(high),
        "note": None,
    }


def _settings(steps: ArrayLike, guidance: ArrayLike) -> Floats:
    """(..., 2) log2(steps) and effective guidance, broadcast; none counts as switched off, a constant."""
    log_steps = np.log2(np.maximum(np.asarray(steps, dtype=np.float64), 1))
    return np.stack(np.broadcast_arrays(log_steps, np.nan_to_num(effective_guidance(guidance), nan=1.0)), axis=-1)


def _design(steps: ArrayLike, guidance: ArrayLike, model_row: Mapping[str, Any]) -> Floats:
    """(..., 6) the columns named by `TERMS`, standardised as the model's were."""
    mean = model_row["steps_mean"], model_row["guidance_mean"]
    std = model_row["steps_std"], model_row["guidance_std"]
    s, g = np.moveaxis((_settings(steps, guidance) - mean) / std, -1, 0)
    return np.stack([np.ones_like(s), s, g, s * s, s * g, g * g], axis=-1)


def _models(rows: pl.DataFrame, metric: str, names: list[str], seed: int) -> list[dict[str, Any]]:
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    y, settings = _floats(rows, metric), _settings(_floats(rows, "steps"), _floats(rows, "guidance"))
    n = len(y)
    # The polynomial's column of ones is idle beside the intercept; degree 0 has nothing else, and is the mean.
    pipelines = {
        model: make_pipeline(StandardScaler(), PolynomialFeatures(degree), LinearRegression())
        for model, degree in MODELS.items()
    }
    constant = np.ptp(settings, axis=0) == 0 if n else (False, False)
    notes = [f"{name} never varies" for name, same in zip(names, constant, strict=False) if same]
    if "guidance" not in names:
        notes.append(NO_GUIDANCE)
    chosen, folds_by = "mean", None
    errors: dict[str, Floats] = {}
    if n < LEAST_IMAGES:
        notes.insert(0, f"too few images ({n}; {LEAST_IMAGES} needed)")
    elif np.ptp(y) == 0:
        notes.insert(0, "every image has the same score")
    else:
        # A prompt seen in training would flatter a model.
        folds_by = "prompt" if rows["prompt"].n_unique() >= FOLDS else "image"
        groups = rows["prompt"].rank("dense").fill_null(0).to_numpy() if folds_by == "prompt" else np.arange(n)
        folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
        for model, pipeline in pipelines.items():
            errors[model] = (y - cross_val_predict(pipeline, settings, y, groups=groups, cv=folds)) ** 2
        chosen = _simplest(errors)
    found = []
    for model, pipeline in pipelines.items():
        row = {
            "model": model,
            "n": n,
            "folds_by": folds_by,
            "chosen": model == chosen,
            "note": "; ".join(notes) or None,
        }
        if errors:
            # The mean model predicts the training folds' mean: its error is R²'s denominator.
            row["r2"] = float(1 - errors[model].sum() / errors["mean"].sum())
            row["rmse"] = float(np.sqrt(errors[model].mean()))
        if n:
            pipeline.fit(settings, y)
            values = [pipeline[-1].intercept_, *pipeline[-1].coef_[1:]]
            row["coefficients"] = [
                {"term": term, "value": float(value)} for term, value in zip(TERMS, values, strict=False)
            ]
            row["steps_mean"], row["guidance_mean"] = pipeline[0].mean_.tolist()
            row["steps_std"], row["guidance_std"] = pipeline[0].scale_.tolist()
        found.append(row)
    return found


def _simplest(errors: Mapping[str, Floats]) -> str:
    """The first model whose squared errors are within one (paired) standard error of the best model's."""
    from scipy.stats import sem

    best = min(errors, key=lambda model: float(errors[model].mean()))
    rounding = 1e-9 * errors["mean"].mean()
    excess = {model: error - errors[best] for model, error in errors.items()}
    return next((model for model, more in excess.items() if more.mean() <= sem(more) + rounding), best)


def _spots(rows: pl.DataFrame, models: Mapping[str, Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    settings = tried(rows)
    rows = rows.drop_nulls(settings)
    moving = [metric for metric, model in models.items() if model["model"] != "mean" and rows[metric].count()]
    them = " or ".join(settings)
    flat = f"does not move with {them}"
    found: dict[str, dict[str, Any]] = {metric: {"n": 0, "note": flat} for metric in METRICS}
    for metric, model in models.items():
        # Flat is what was judged so; too few images are another matter.
        notes = [flat if model["r2"] is not None else None, model["note"]]
        found[metric] = {"n": model["n"], "note": "; ".join(filter(None, notes))}
    for target in ("overall", "value"):
        found[target] = {"n": rows.height, "note": f"no metric moves with {them}"}
    if not moving:
        return [{"target": target, **row} for target, row in found.items()]

    steps, guidance = _grid(rows)
    seconds = _seconds(rows, steps, guidance)
    draws = np.random.default_rng(seed).integers(0, rows.height, (SPOT_DRAWS, rows.height))
    scores = {metric: _floats(rows, metric) for metric in moving}
    surfaces = {m: _surfaces(rows, y, models[m], draws, steps, guidance) for m, y in scores.items()}
    overall = np.mean([(surfaces[m] - np.nanmean(y)) / np.nanstd(y) for m, y in scores.items()], axis=0)
    surfaces |= {"overall": overall, "value": overall}
    best = {target: surface.argmax(axis=1) for target, surface in surfaces.items()}
    # Without times the fewest steps stand in for the fewest seconds.
    best["value"] = _cheapest(overall, steps if seconds is None else seconds)

    for target, (at, *drawn) in best.items():
        notes = [
            f"at the edge of the {name} tried"
            for name, axis in (("steps", steps), ("guidance", guidance))
            if target != "value" and axis.min() < axis.max() and axis[at] in (axis.min(), axis.max())
        ]
        if target not in moving:
            notes.insert(0, "over " + ", ".join(METRICS[metric] for metric in moving))
        if "guidance" not in settings:
            notes.append(NO_GUIDANCE)
        steps_low, steps_high = np.quantile(steps[drawn], [0.05, 0.95]).round()
        guidance_low, guidance_high = np.quantile(guidance[drawn], [0.05, 0.95])
        found[target] |= {
            "steps": int(steps[at]),
            "guidance": float(guidance[at]),
            "predicted": float(surfaces[target][0, at]),
            "seconds": None if seconds is None else float(seconds[at]),
            "steps_low": int(steps_low),
            "steps_high": int(steps_high),
            "guidance_low": float(guidance_low),
            "guidance_high": float(guidance_high),
            "note": "; ".join(notes) or None,
        }
    return [{"target": target, **row} for target, row in found.items()]


def _grid(rows: pl.DataFrame) -> tuple[Floats, Floats]:
    """Two flat arrays, every pair of whole steps and guidance to 0.01 within the range that was tried."""
    steps, guidance = _floats(rows, "steps").clip(1), effective_guidance(_floats(rows, "guidance"))
    low, high = guidance.min(), guidance.max()
    pairs = np.meshgrid(
        np.unique(np.geomspace(steps.min(), steps.max(), 60).round()),
        np.unique(np.linspace(low, high, 45).round(2)).clip(low, high),
        indexing="ij",
    )
    return pairs[0].ravel(), pairs[1].ravel()


def _seconds(rows: pl.DataFrame, grid_steps: Floats, grid_guidance: Floats) -> Floats | None:
    """Seconds an image on the grid: a line in steps, a second slope where guidance runs the model twice."""
    from sklearn.linear_model import LinearRegression

    timed = rows.drop_nulls("elapsed_ms")
    if not timed.height:
        return None
    steps, guidance, elapsed = (_floats(timed, name) for name in ("steps", "guidance", "elapsed_ms"))
    slopes = 2 if min((guidance > 1).sum(), (guidance <= 1).sum()) >= LEAST_IMAGES else 1
    tried, grid = (
        np.stack([s, s * (g > 1)], axis=1)[:, :slopes] for s, g in ((steps, guidance), (grid_steps, grid_guidance))
    )
    return np.maximum(LinearRegression().fit(tried, elapsed / 1000).predict(grid), 0.0)


def _surfaces(
    rows: pl.DataFrame,
    y: Floats,
    model: Mapping[str, Any],
    draws: NDArray[np.int64],
    grid_steps: Floats,
    grid_guidance: Floats,
) -> Floats:
    """(1 + draws, grid) what the model predicts, then what it would, refitted to each draw of the rows."""
    terms = len(model["coefficients"])
    design = _design(_floats(rows, "steps"), _floats(rows, "guidance"), model)[:, :terms]
    # Not by pipelines: the hundreds of refits share one design, and a bare fit takes a tenth of the time.
    scored = [drawn[np.isfinite(y[drawn])] for drawn in draws]
    fits = [np.linalg.lstsq(design[drawn], y[drawn], rcond=None)[0] for drawn in scored]
    refitted = np.array(fits) @ _design(grid_steps, grid_guidance, model)[:, :terms].T
    return np.vstack([predict(model, grid_steps, grid_guidance), refitted])


def _cheapest(overall: Floats, cost: Floats) -> NDArray[np.intp]:
    """(draws,) the cheapest grid point close enough to each row's best; among equals, the best one."""
    near = overall >= overall.max(axis=1, keepdims=True) - VALUE_TOLERANCE
    least = np.where(near, cost, np.inf).min(axis=1, keepdims=True)
    return np.asarray(np.where(near & (cost <= least), overall, -np.inf).argmax(axis=1))
