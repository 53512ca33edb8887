"""Fitted responses with confidence bands: every target of an engine, evaluated at any settings."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

import numpy as np
import polars as pl

from flexy_assets.sweep.analysis.basis_functions import make_form, to_coordinates
from flexy_assets.sweep.analysis.model_selection import (
    FLAT_MODEL,
    IMAGES_PER_TERM,
    Model,
    explain_unfitted,
    make_sample,
    max_pieces,
    note_constant_settings,
    read_model,
    response_p_value,
)
from flexy_assets.sweep.analysis.regression import RegressionFit, RegressionSample, fit_least_squares
from flexy_assets.sweep.analysis.rows import (
    METRIC_LABELS,
    MIN_IMAGES,
    TARGET_LABELS,
    Floats,
    Row,
    add_weighted_overall,
    effective_guidance,
    float_column,
    join_notes,
    make_frame,
    normalize_weights,
    setting_names,
    split_by_engine,
)
from flexy_assets.sweep.analysis.schemas import Schema

GRID_STEPS: Final = 21
GRID_GUIDANCE: Final = 13
NEARBY_SHARE: Final = 1 / 6
"""Share of the range tried, on either side, within which images count as near a setting."""


@dataclass(frozen=True)
class Grid:
    """A grid inside the range tried: `steps` (a,) whole ones, `guidance` (b,), and `pairs` (a·b, 2) as coordinates."""

    steps: Floats
    guidance: Floats
    guided: bool

    @property
    def pairs(self) -> Floats:
        return to_coordinates(*self.flat())

    def flat(self) -> tuple[Floats, Floats]:
        """(a·b,) steps and guidance of the pairs."""
        steps, guidance = np.meshgrid(self.steps, self.guidance, indexing="ij")
        return steps.ravel(), guidance.ravel()


def make_grid(rows: pl.DataFrame) -> Grid:
    """Return the grid on which one engine is evaluated: whole steps, and guidance to 0.1 where that is fine enough."""
    placed = rows.drop_nulls(setting_names(rows))
    steps = float_column(placed, "steps").clip(1)
    guidance = np.nan_to_num(effective_guidance(float_column(placed, "guidance")), nan=1)
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

    engine: str
    target: str
    rows: pl.DataFrame
    flat_p: float | None = None
    fit: RegressionFit | None = None
    chosen: tuple[Model, ...] = ()
    note: str | None = None

    @property
    def moves(self) -> bool:
        """Whether the response is significant."""
        return self.flat_p is not None and self.flat_p < FLAT_MODEL

    @property
    def flat(self) -> str | None:
        """A note that the response is not significant; None where it is, or where nothing could be tested."""
        if self.fit is None or self.moves:
            return None
        return f"no significant effect of {' or '.join(setting_names(self.rows))}"

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
        margin = self.fit.sample.clusters.t * np.sqrt((deviation**2).mean(axis=0))
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


def average_columns(response: FittedResponse, grid: Grid, setting: str, values: Floats) -> Floats:
    """Return (m, p) columns at values (m,) of a setting, averaged over the other: steps in their logarithm."""
    if setting == "steps":
        pairs = to_coordinates(values[:, None], np.linspace(grid.guidance[0], grid.guidance[-1], GRID_GUIDANCE))
    else:
        pairs = to_coordinates(np.geomspace(grid.steps[0], grid.steps[-1], GRID_STEPS), values[:, None])
    return response.columns(pairs.reshape(-1, 2)).reshape(*pairs.shape[:2], -1).mean(axis=1)


def compute_step_gains(response: FittedResponse, grid: Grid, steps: Floats) -> Floats:
    """Return (m, p) what one more step adds to columns at steps (m,); for the last tried, the step before."""
    start = np.minimum(steps, max(grid.steps[-1] - 1, grid.steps[0]))
    after = average_columns(response, grid, "steps", np.minimum(start + 1, grid.steps[-1]))
    return after - average_columns(response, grid, "steps", start)


def fit_responses(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None, seed: int
) -> Iterator[FittedResponse]:
    """Yield each engine's fitted `TARGET_LABELS`, with the same draws of clusters."""
    shares = normalize_weights(weights)
    for engine, all_rows in split_by_engine(scores):
        rows = add_weighted_overall(all_rows.drop_nulls(setting_names(all_rows)), weights)
        selected = regression.filter("chosen", pl.col("metric").is_in(list(METRIC_LABELS)), engine=engine)
        model_rows = {row["metric"]: row for row in selected.iter_rows(named=True)}
        models = {metric: model for metric, row in model_rows.items() if (model := read_model(row))}
        weighted_pieces = [row["band_pieces"] or 0 for metric, row in model_rows.items() if shares[metric]]
        dropped = all_rows.height - rows.height
        dropped_note = f"{dropped} images have no {' or no '.join(setting_names(rows))}" if dropped else None
        overall = {"band_pieces": max(weighted_pieces, default=0), "flat_p": None}
        for target in TARGET_LABELS:
            chosen = (models[target],) if target in models else _combine_models(rows, models, shares)
            yield _fit_response(engine, target, rows, model_rows.get(target, overall), chosen, dropped_note, seed)


def tabulate_responses(
    responses: Iterable[FittedResponse], rows_of: Callable[[FittedResponse], Iterable[Row]], schema: Schema
) -> pl.DataFrame:
    """Return the rows of each response, with its engine and target, as a table of the schema."""
    rows = ({"engine": each.engine, "target": each.target, **row} for each in responses for row in rows_of(each))
    return make_frame(rows, schema)


def _combine_models(rows: pl.DataFrame, models: Mapping[str, Model], shares: Mapping[str, float]) -> tuple[Model, ...]:
    """Return the metrics' models combined to one of the weighted z-scores; empty if one is missing or all are flat."""
    values = {metric: float_column(rows.drop_nulls(metric), metric) for metric, share in shares.items() if share}
    varying = {metric: known for metric, known in values.items() if len(known) > 1 and np.ptp(known) > 0}
    if not varying.keys() <= models.keys() or not any(models[metric][0].degree for metric in varying):
        return ()
    total = sum(shares[metric] for metric in varying)
    scaled_models, offset = [], 0.0
    for metric, known in varying.items():
        scale = shares[metric] / total / float(np.std(known, ddof=1))
        form, coefficients = models[metric]
        scaled_models.append((form, scale * coefficients))
        offset += scale * float(known.mean())
    return (*scaled_models, (replace(form, name="mean", degree=0, knots=None), np.array([-offset])))


def _fit_response(
    engine: str,
    target: str,
    rows: pl.DataFrame,
    model: Row,
    chosen: tuple[Model, ...],
    dropped_note: str | None,
    seed: int,
) -> FittedResponse:
    fitted_rows, sample = make_sample(rows, target, seed)
    notes = note_constant_settings(rows, sample.settings)
    if reason := explain_unfitted(rows, target, sample):
        return FittedResponse(engine, target, fitted_rows, note=join_notes(reason, *notes, dropped_note))
    p = response_p_value(sample, seed) if model["flat_p"] is None else model["flat_p"]
    pieces = max_pieces(sample, model["band_pieces"] or 0)
    degree = next(d for d in (3, 2, 1) if d == 1 or (d + 1) * (d + 2) / 2 * IMAGES_PER_TERM <= len(sample.y))
    form = make_form(sample.settings, "band", degree, pieces)
    # A cubic follows the effect of steps; guidance may peak more sharply.
    cubic_form = make_form(sample.settings, "band", pieces=2, crossed=True)
    if not pieces and len(cubic_form.terms()) * IMAGES_PER_TERM <= len(sample.y):
        form = cubic_form
    if degree < 3:
        notes.append(f"too few images ({len(sample.y)}) for a polynomial above degree {degree}")
    fit = fit_least_squares(form, sample, sample.clusters.weights(seed))
    prompts = int(sample.clusters.prompts.max()) + 1
    if sample.clusters.by == "image" and prompts < len(sample.y):
        notes.append(f"bands apply to these {prompts} prompts only")
    note = join_notes(*notes, _sparse_corners_note(rows, sample), dropped_note)
    return FittedResponse(engine, target, fitted_rows, p, fit, chosen or ((form, fit.coefficients),), note)


def _sparse_corners_note(rows: pl.DataFrame, sample: RegressionSample) -> str | None:
    """Return a note on the corners of the settings with too few images; None without any."""
    if "guidance" not in setting_names(rows) or not np.ptp(sample.settings, axis=0).all():
        return None
    low, high = sample.settings.min(axis=0), sample.settings.max(axis=0)
    position, sparse = (sample.settings - low) / (high - low), []
    for (few, steps_end), (lowest, guidance_end) in product((("few", 0), ("many", 1)), (("low", 0), ("high", 1))):
        count = (abs(position - [steps_end, guidance_end]) <= 1 / 3).all(axis=1).sum()
        if count < MIN_IMAGES:
            sparse.append(f"{few} steps with {lowest} guidance ({count})")
    return f"too few images of {', '.join(sparse)}" if sparse else None
