"""Each metric by steps and guidance: models from a mean to a spline surface, selected by cross-validation."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from flexy_assets.sweep.analysis.basis_functions import BasisForm, make_form, to_coordinates
from flexy_assets.sweep.analysis.clusters import find_clusters
from flexy_assets.sweep.analysis.regression import (
    CV_FOLDS,
    RegressionSample,
    fit_least_squares,
    flatness_p_value,
    predict_out_of_fold,
)
from flexy_assets.sweep.analysis.rows import (
    METRIC_LABELS,
    MIN_IMAGES,
    NO_GUIDANCE,
    Floats,
    Row,
    float_column,
    join_notes,
    make_frame,
    setting_names,
    split_by_engine,
)
from flexy_assets.sweep.analysis.schemas import REGRESSION_SCHEMA

Model = tuple[BasisForm, Floats]
"""A form and its coefficients (p,)."""

MODELS: Final = ("mean", "linear", "quadratic", "additive", "spline")
"""Simplest first: the polynomials of degree 0 to 2, a sum of two splines, a spline surface."""
PIECES: Final = (1, 2, 4, 6)
"""Polynomial pieces in each direction of the candidate spline surfaces; more need more images."""
WIDER_MODEL: Final = {"mean": 0, "linear": 0, "quadratic": 0, "additive": 2, "spline1": 2, "spline2": 4}
"""Pieces of the surface that bands rest on, one size up from the selected model; 0 is a cubic, its guidance in two.

A model selected for its prediction error leaves about as much bias as noise, which no bootstrap sees.
With more terms than that the bias is small beside the bands (undersmoothing: Hall 1992, Annals of Statistics).
"""
MORE_PIECES: Final = {5_000: 2, 20_000: 4}
"""Minimum pieces of the bands by number of images: noise falls with images, the bias of a form does not."""
IMAGES_PER_TERM: Final = 5
"""With fewer, a fit would follow each image."""
FLAT_MODEL: Final = 0.05
"""Significance level: above it a metric counts as flat."""


def fit_models(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Return each metric regressed on log2(steps) and log2(effective guidance) by the `MODELS`.

    `r2` and `rmse` are out of fold: five folds, whole prompts left out where there are five or more, against the mean
    of the same training folds. `chosen` is the mean where `flat_p` is 0.05 or more; else the model with the least error
    out of fold, prompts' means removed. `predict_score` reads `coefficients`. Returns `REGRESSION_SCHEMA`, five rows an
    engine and metric.
    """
    models = (
        {"engine": engine, "metric": metric, **model}
        for engine, rows in split_by_engine(scores)
        for metric in METRIC_LABELS
        for model in _compare_models(rows, metric, seed)
    )
    return make_frame(models, REGRESSION_SCHEMA)


def predict_score(model_row: Mapping[str, Any], steps: ArrayLike, guidance: ArrayLike) -> Floats:
    """Return the metric that one row of `sweep_regression` predicts at these settings (broadcast); NaN without a fit.

    The guidance of an engine without guidance is NaN.
    """
    settings, model = to_coordinates(steps, guidance), read_model(model_row)
    if model is None:
        return np.full(settings.shape[:-1], np.nan)
    form, values = model
    return np.asarray(form.columns(settings.reshape(-1, 2)) @ values).reshape(settings.shape[:-1])


def read_model(row: Mapping[str, Any]) -> Model | None:
    """Return the model of one row of `sweep_regression`; None without a fit."""
    values = [coefficient["value"] for coefficient in row["coefficients"] or []]
    if not values:
        return None
    form = BasisForm(
        row["model"],
        (row["steps_mean"], row["guidance_mean"]),
        (row["steps_std"], row["guidance_std"]),
        row["degree"],
        (row["steps_degree"], row["guidance_degree"]),
        (tuple(row["steps_knots"]), tuple(row["guidance_knots"])) if row["steps_knots"] else None,
        row["model"] == "additive",
    )
    return form, np.array(values)


def make_sample(rows: pl.DataFrame, target: str, seed: int) -> tuple[pl.DataFrame, RegressionSample]:
    usable = rows.drop_nulls([target, *setting_names(rows)])
    settings = to_coordinates(float_column(usable, "steps"), float_column(usable, "guidance"))
    return usable, RegressionSample(settings, float_column(usable, target), find_clusters(usable, seed))


def explain_unfitted(rows: pl.DataFrame, target: str, sample: RegressionSample) -> str | None:
    """Return why no model can be fitted to the images; None where one can."""
    n, unscored = len(sample.y), rows[target].null_count()
    if n < MIN_IMAGES:
        missing_what = "one of the scores, or none of them varies" if target == "overall" else "the score"
        unscored_note = f", {unscored} lack {missing_what}" if unscored else ""
        return f"too few images ({n}; {MIN_IMAGES} needed{unscored_note})"
    if np.ptp(sample.y) == 0:
        return "every image has the same score"
    return None


def note_constant_settings(rows: pl.DataFrame, settings: Floats) -> list[str]:
    """Return a note for each setting that is constant or absent."""
    names = setting_names(rows)
    constant = np.ptp(settings, axis=0) == 0 if len(settings) else (False, False)
    notes = [f"{name} is constant" for name, is_constant in zip(names, constant, strict=False) if is_constant]
    return notes if "guidance" in names else [*notes, NO_GUIDANCE]


def _compare_models(rows: pl.DataFrame, metric: str, seed: int) -> list[Row]:
    _, sample = make_sample(rows, metric, seed)
    n = len(sample.y)
    reason = explain_unfitted(rows, metric, sample)
    shared: Row = {"n": n, "note": join_notes(reason, *note_constant_settings(rows, sample.settings))}
    if not n:
        return [{"model": model, "chosen": model == "mean", **shared} for model in MODELS]
    forms = {name: make_form(sample.settings, name, degree) for degree, name in enumerate(MODELS[:3])}
    forms["additive"] = make_form(sample.settings, "additive", pieces=2)
    splines = {f"spline{pieces}": make_form(sample.settings, "spline", pieces=pieces) for pieces in PIECES}
    errors: dict[str, Floats] = {}
    chosen, best_spline = "mean", "spline1"
    if reason is None:
        shared["folds_by"] = "prompt" if sample.clusters.prompts.max() + 1 >= CV_FOLDS else "image"
        folds = _assign_folds(sample, shared["folds_by"], seed)
        affordable = {k: f for k, f in (forms | splines).items() if len(f.terms()) <= max(n / IMAGES_PER_TERM, 3)}
        whitened = {}
        for name, form in affordable.items():
            errors[name], whitened[name] = predict_out_of_fold(form, sample, folds)
        loss = {name: float((error**2).mean()) for name, error in whitened.items()}
        best_spline = min((name for name in splines if name in loss), key=loss.__getitem__, default=best_spline)
        best_bending = min((name for name in loss if name != "mean"), key=loss.__getitem__, default="mean")
        shared["flat_p"] = response_p_value(sample, seed)
        chosen = best_bending if shared["flat_p"] < FLAT_MODEL else "mean"
        least = max((pieces for images, pieces in MORE_PIECES.items() if n >= images), default=0)
        pieces = max(WIDER_MODEL.get(best_bending, int(best_spline.removeprefix("spline"))), least)
        shared |= {"band_pieces": max_pieces(sample, pieces)}
        shared |= {"prompt_share": sample.within if sample.clusters.prompts.max() + 1 < n else None}
        shared |= {"clusters": sample.clusters.count, "clusters_by": sample.clusters.by}
    forms["spline"] = splines[best_spline]
    if best_spline in errors:
        errors["spline"] = errors[best_spline]
    models = []
    for model, form in forms.items():
        values = fit_least_squares(form, sample).coefficients
        row = shared | {"model": model, "chosen": model == ("spline" if chosen.startswith("spline") else chosen)}
        named = zip(form.terms(), values.tolist(), strict=True)
        row["coefficients"] = [{"term": term, "value": value} for term, value in named]
        row["degree"] = form.degree
        for axis, name in enumerate(("steps", "guidance")):
            row |= {f"{name}_mean": form.mean[axis], f"{name}_std": form.std[axis]}
            row |= {f"{name}_degree": form.degrees[axis], f"{name}_knots": form.knots and form.knots[axis]}
        if model in errors:
            # The mean model predicts the training folds' mean: its error is R²'s denominator.
            row["r2"] = float(1 - (errors[model] ** 2).sum() / (errors["mean"] ** 2).sum())
            row["rmse"] = float(np.sqrt((errors[model] ** 2).mean()))
        models.append(row)
    return models


def _assign_folds(sample: RegressionSample, by: str, seed: int) -> NDArray[np.int64]:
    """Return (n,) five folds of about equal size, prompts kept whole: seen in training they would flatter a model."""
    groups = sample.clusters.prompts if by == "prompt" else np.arange(len(sample.y))
    shuffled = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[shuffled]
    midpoints = np.cumsum(sizes) - sizes / 2
    fold = np.minimum((midpoints * CV_FOLDS / sizes.sum()).astype(np.int64), CV_FOLDS - 1)
    fold_of_group = np.empty_like(fold)
    fold_of_group[shuffled] = fold
    return fold_of_group[groups]


def response_p_value(sample: RegressionSample, seed: int) -> float:
    """Return the probability of a response as large by chance."""
    mean, linear, quadratic = (make_form(sample.settings, name, degree) for degree, name in enumerate(MODELS[:3]))
    return flatness_p_value(sample, [linear, quadratic, make_form(sample.settings, "spline", pieces=1)], mean, seed)


def max_pieces(sample: RegressionSample, pieces: int) -> int:
    """Return the most pieces, at most these, whose surface has enough images a term."""
    surfaces = {size: make_form(sample.settings, "spline", pieces=size) for size in PIECES if size <= pieces}
    affordable = len(sample.y) / IMAGES_PER_TERM
    return max((size for size, form in surfaces.items() if len(form.terms()) <= affordable), default=0)
