"""Fitted responses with confidence bands: every target of an engine, evaluated at any settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl

from flexy_assets.sweep.analysis.basis_functions import BasisForm, make_form, to_coordinates
from flexy_assets.sweep.analysis.model_selection import (
    FLAT_MODEL,
    IMAGES_PER_TERM,
    explain_unfitted,
    make_sample,
    make_test_forms,
    max_pieces,
    note_constant_settings,
    read_model,
)
from flexy_assets.sweep.analysis.regression import RegressionFit, RegressionSample, fit_least_squares, flatness_p_value
from flexy_assets.sweep.analysis.rows import (
    METRIC_LABELS,
    MIN_IMAGES,
    TARGET_LABELS,
    Floats,
    add_weighted_overall,
    effective_guidance,
    float_column,
    join_notes,
    measured_images,
    normalize_weights,
    setting_names,
    split_by_engine,
)

GRID_STEPS: Final = 21
GRID_GUIDANCE: Final = 13
NEARBY_SHARE: Final = 1 / 6
"""Share of the range tried, on either side, within which images count as near a setting."""


@dataclass(frozen=True)
class Grid:
    """A grid inside the range tried: `steps` (a,) whole ones, `guidance` (b,), and all pairs of them.

    `pairs` (a·b, 2) are coordinates, steps first.
    """

    steps: Floats
    guidance: Floats
    guided: bool

    @property
    def pairs(self) -> Floats:
        return to_coordinates(self.steps[:, None], self.guidance[None, :]).reshape(-1, 2)

    def flat(self) -> tuple[Floats, Floats]:
        """(a·b,) steps and guidance of the pairs."""
        steps, guidance = np.meshgrid(self.steps, self.guidance, indexing="ij")
        return steps.ravel(), guidance.ravel()


def make_grid(rows: pl.DataFrame) -> Grid:
    """Return the grid on which one engine is evaluated: whole steps, and guidance to 0.1 where that is fine enough."""
    rows_with_settings = rows.drop_nulls(setting_names(rows))
    steps, guidance = (
        float_column(rows_with_settings, "steps").clip(1),
        np.nan_to_num(effective_guidance(float_column(rows_with_settings, "guidance")), nan=1),
    )
    low, high = guidance.min(), guidance.max()
    even_guidance = np.geomspace(low, high, GRID_GUIDANCE)
    return Grid(
        np.unique(np.geomspace(steps.min(), steps.max(), GRID_STEPS).round()),
        np.unique(even_guidance.round(1 if high - low > 2 else 2).clip(low, high)),
        "guidance" in setting_names(rows),
    )


@dataclass(frozen=True)
class FittedResponse:
    """One engine and target, ready for bands: `fit` is None where `note` says why; `flat_p` as in `REGRESSION_SCHEMA`.

    Two models at once: what is expected is by `chosen`, the forms that err least out of fold and their coefficients,
    added up; how sure that is, by `fit`, which bends more than the images bear, so that its bias is small beside its
    bands.
    """

    target: str
    rows: pl.DataFrame
    flat_p: float | None = None
    sample: RegressionSample | None = None
    fit: RegressionFit | None = None
    chosen: tuple[tuple[BasisForm, Floats], ...] = ()
    note: str | None = None

    @property
    def moves(self) -> bool:
        """Whether the response is significant."""
        return self.flat_p is not None and self.flat_p < FLAT_MODEL

    @property
    def flat(self) -> str | None:
        """A note that the response is not significant; None where it is, or where nothing could be tested."""
        return (
            None
            if self.fit is None or self.moves
            else f"no significant effect of {' or '.join(setting_names(self.rows))}"
        )

    def columns(self, settings: Floats) -> Floats:
        """Return (m, p) the fit's columns at settings (m, 2), then those of the selected forms."""
        assert self.fit is not None
        forms = [self.fit.form, *(form for form, _ in self.chosen)]
        return np.hstack([form.columns(settings) for form in forms])

    def deviations(self, columns: Floats) -> tuple[Floats, Floats]:
        """Return the fit's value (m,) of columns (m, p) or their differences, and refits less that (draws, m)."""
        assert self.fit is not None
        fit_columns = columns[:, : len(self.fit.coefficients)]
        return fit_columns @ self.fit.coefficients, (self.fit.drawn - self.fit.coefficients) @ fit_columns.T

    def bands(self, columns: Floats) -> tuple[Floats, Floats, Floats]:
        """Return (m,) the expectation, and the ends of its pointwise 95 % band."""
        assert self.fit is not None
        center, deviation = self.deviations(columns)
        margin = self.fit.t * np.sqrt((deviation**2).mean(axis=0))
        expected = columns[:, len(self.fit.coefficients) :] @ np.concatenate([values for _, values in self.chosen])
        return expected, np.minimum(center - margin, expected), np.maximum(center + margin, expected)


def count_images_nearby(rows: pl.DataFrame, steps: Floats | None, guidance: Floats | None) -> Floats:
    """Return how many images lie within `NEARBY_SHARE` of the range tried of each of the settings."""
    image_coordinates = to_coordinates(float_column(rows, "steps"), float_column(rows, "guidance"))
    radius = np.maximum(np.ptp(image_coordinates, axis=0), 1e-9) * NEARBY_SHARE
    is_near: Any = True
    for axis, values in enumerate((steps, guidance)):
        if values is not None:
            coordinates = to_coordinates(values, values)[:, axis]
            is_near = is_near & (np.abs(image_coordinates[None, :, axis] - coordinates[:, None]) <= radius[axis])
    return np.asarray(is_near.sum(axis=1))


def average_over_steps(response: FittedResponse, grid: Grid, steps: Floats) -> Floats:
    """Return (m, p) columns at steps (m,), averaged over the guidance tried."""
    guidance = np.linspace(grid.guidance[0], grid.guidance[-1], GRID_GUIDANCE)
    each = response.columns(to_coordinates(steps[:, None], guidance[None, :]).reshape(-1, 2))
    return each.reshape(len(steps), len(guidance), -1).mean(axis=1)


def average_over_guidance(response: FittedResponse, grid: Grid, guidance: Floats) -> Floats:
    """Return (m, p) columns at guidance (m,), averaged over the logarithm of the steps tried."""
    steps = np.geomspace(grid.steps[0], grid.steps[-1], GRID_STEPS)
    each = response.columns(to_coordinates(steps[None, :], guidance[:, None]).reshape(-1, 2))
    return each.reshape(len(guidance), len(steps), -1).mean(axis=1)


def compute_step_gains(response: FittedResponse, grid: Grid, steps: Floats) -> Floats:
    """Return (m, p) what one more step adds to columns at steps (m,); for the last tried, the step before."""
    start = np.minimum(steps, max(grid.steps[-1] - 1, grid.steps[0]))
    return average_over_steps(response, grid, np.minimum(start + 1, grid.steps[-1])) - average_over_steps(
        response, grid, start
    )


def fit_responses(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float], seed: int
) -> Iterator[tuple[str, list[FittedResponse]]]:
    """Yield each engine and its fitted `TARGET_LABELS`, with the same draws of clusters."""
    models = {(row["engine"], row["metric"]): row for row in regression.filter("chosen").iter_rows(named=True)}
    shares = normalize_weights(weights)
    for engine, all_rows in split_by_engine(measured_images(scores)):
        rows = add_weighted_overall(all_rows.drop_nulls(setting_names(all_rows)), weights)
        models_of_engine = {metric: models[engine, metric] for metric in METRIC_LABELS if (engine, metric) in models}
        weighted_pieces = [row["band_pieces"] or 0 for metric, row in models_of_engine.items() if shares[metric]]
        models_by_metric = {metric: model for metric, row in models_of_engine.items() if (model := read_model(row))}
        fitted_responses = []
        for target in TARGET_LABELS:
            row = models_of_engine.get(target) or {"band_pieces": max(weighted_pieces, default=0), "flat_p": None}
            chosen = (
                (models_by_metric[target],)
                if target in models_by_metric
                else _combine_models(rows, models_by_metric, shares)
            )
            fitted_responses.append(_fit_response(rows, target, row, chosen, all_rows.height - rows.height, seed))
        yield engine, fitted_responses


def _combine_models(
    rows: pl.DataFrame, models_by_metric: Mapping[str, tuple[BasisForm, Floats]], shares: Mapping[str, float]
) -> tuple[tuple[BasisForm, Floats], ...]:
    """Return the metrics' models combined to one of the weighted z-scores; empty if one is missing or all are flat."""
    values_by_metric = {
        metric: float_column(rows.drop_nulls(metric), metric) for metric, share in shares.items() if share
    }
    varying = {metric: values for metric, values in values_by_metric.items() if len(values) > 1 and np.ptp(values) > 0}
    if not varying.keys() <= models_by_metric.keys() or not any(
        models_by_metric[metric][0].degree for metric in varying
    ):
        return ()
    total = sum(shares[metric] for metric in varying)
    scaled_models, offset = [], 0.0
    for metric, values in varying.items():
        scale = shares[metric] / total / float(np.std(values, ddof=1))
        form, coefficients = models_by_metric[metric]
        scaled_models.append((form, scale * coefficients))
        offset += scale * float(values.mean())
    return (*scaled_models, (replace(form, name="mean", degree=0, knots=None), np.array([-offset])))


def _fit_response(
    rows: pl.DataFrame,
    target: str,
    model: Mapping[str, Any],
    chosen: tuple[tuple[BasisForm, Floats], ...],
    dropped: int,
    seed: int,
) -> FittedResponse:
    fitted_rows, sample = make_sample(rows, target, seed)
    reason = explain_unfitted(rows, target, sample)
    dropped_note = f"{dropped} images have no {' or no '.join(setting_names(rows))}" if dropped else None
    if reason:
        return FittedResponse(
            target,
            fitted_rows,
            note=join_notes(reason, *note_constant_settings(rows, sample.settings), dropped_note),
        )
    p = model["flat_p"]
    mean = make_form(sample.settings, "mean", 0)
    if p is None:
        p = flatness_p_value(sample, make_test_forms(sample.settings), mean, seed)
    pieces = max_pieces(sample, model["band_pieces"] or 0)
    degree = next(d for d in (3, 2, 1) if d == 1 or (d + 1) * (d + 2) / 2 * IMAGES_PER_TERM <= len(sample.y))
    form = make_form(sample.settings, "band", degree, pieces)
    # A cubic follows the effect of steps; guidance may peak more sharply.
    cubic_form = make_form(sample.settings, "band", pieces=2, crossed=True)
    if not pieces and len(cubic_form.terms()) * IMAGES_PER_TERM <= len(sample.y):
        form = cubic_form
    notes = note_constant_settings(rows, sample.settings)
    if degree < 3:
        notes.append(f"too few images ({len(sample.y)}) for a polynomial above degree {degree}")
    fitted = fit_least_squares(form, sample, sample.clusters.weights(seed))
    prompts = int(sample.clusters.prompts.max()) + 1
    if sample.clusters.by == "image" and prompts < len(sample.y):
        notes.append(f"bands apply to these {prompts} prompts only")
    chosen = chosen or ((fitted.form, fitted.coefficients),)
    return FittedResponse(
        target,
        fitted_rows,
        p,
        sample,
        fitted,
        chosen,
        join_notes(*notes, _sparse_corners_note(rows, sample), dropped_note),
    )


def _sparse_corners_note(rows: pl.DataFrame, sample: RegressionSample) -> str | None:
    """Return a note on the corners of the settings with too few images; None without any."""
    if "guidance" not in setting_names(rows) or not np.ptp(sample.settings, axis=0).all():
        return None
    low, high = sample.settings.min(axis=0), sample.settings.max(axis=0)
    position = (sample.settings - low) / (high - low)
    corners = {
        f"{words[0]} steps with {words[1]} guidance": ((abs(position - ends) <= 1 / 3).all(axis=1)).sum()
        for words, ends in (
            (("few", "low"), (0, 0)),
            (("few", "high"), (0, 1)),
            (("many", "low"), (1, 0)),
            (("many", "high"), (1, 1)),
        )
    }
    sparse = [f"{corner} ({count})" for corner, count in corners.items() if count < MIN_IMAGES]
    return f"too few images of {', '.join(sparse)}" if sparse else None
