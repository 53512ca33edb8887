"""Responses with bands: every target of an engine fitted and refitted, ready to be asked at any settings."""

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
    constant_settings,
    make_sample,
    max_pieces,
    model_forms,
    read_model,
    reason_not_fitted,
)
from flexy_assets.sweep.analysis.regression import RegressionFit, RegressionSample, fit_least_squares, flatness_p_value
from flexy_assets.sweep.analysis.rows import (
    METRIC_LABELS,
    MIN_IMAGES,
    TARGET_LABELS,
    Floats,
    effective_guidance,
    float_column,
    measured_images,
    normalize_weights,
    split_by_engine,
    summary_columns,
    tried_images,
    with_weighted,
)

GRID_STEPS: Final = 21
GRID_GUIDANCE: Final = 13
NEARBY_SHARE: Final = 1 / 6
"""Of the range tried, on either side: images so near are counted as a setting's own."""


@dataclass(frozen=True)
class Grid:
    """Settings inside the range that was tried: `steps` (a,) whole ones, `guidance` (b,), and all pairs of them.

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
    """The settings at which one engine is looked at: whole steps, and guidance to 0.1 where that is fine enough."""
    placed = rows.drop_nulls(tried_images(rows))
    steps, guidance = (
        float_column(placed, "steps").clip(1),
        np.nan_to_num(effective_guidance(float_column(placed, "guidance")), nan=1),
    )
    low, high = guidance.min(), guidance.max()
    even = np.geomspace(low, high, GRID_GUIDANCE)
    return Grid(
        np.unique(np.geomspace(steps.min(), steps.max(), GRID_STEPS).round()),
        np.unique(even.round(1 if high - low > 2 else 2).clip(low, high)),
        "guidance" in tried_images(rows),
    )


@dataclass(frozen=True)
class FittedResponse:
    """One engine and target, ready for bands: `fit` is None where `note` says why; `flat_p` as in `REGRESSION`.

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
        """Whether the target cannot be called flat."""
        return self.flat_p is not None and self.flat_p < FLAT_MODEL

    @property
    def flat(self) -> str | None:
        """That the target cannot be told from flat, in words; None where it can, or where nothing could be tested."""
        return None if self.fit is None or self.moves else f"does not move with {' or '.join(tried_images(self.rows))}"

    def columns(self, settings: Floats) -> Floats:
        """(m, p) the fit's columns at settings (m, 2), then those of the chosen forms."""
        assert self.fit is not None
        forms = [self.fit.form, *(form for form, _ in self.chosen)]
        return np.hstack([form.columns(settings) for form in forms])

    def deviations(self, columns: Floats) -> tuple[Floats, Floats]:
        """What rows of columns (m, p), or differences of them, are by the fit (m,); refits less that (draws, m)."""
        assert self.fit is not None
        own = columns[:, : len(self.fit.coefficients)]
        return own @ self.fit.coefficients, (self.fit.drawn - self.fit.coefficients) @ own.T

    def bands(self, columns: Floats) -> tuple[Floats, Floats, Floats]:
        """(m,) the expectation, and the ends of its pointwise 95 % band."""
        assert self.fit is not None
        middle, deviation = self.deviations(columns)
        reach = self.fit.t * np.sqrt((deviation**2).mean(axis=0))
        expected = columns[:, len(self.fit.coefficients) :] @ np.concatenate([values for _, values in self.chosen])
        return expected, np.minimum(middle - reach, expected), np.maximum(middle + reach, expected)


def images_nearby(rows: pl.DataFrame, steps: Floats | None, guidance: Floats | None) -> Floats:
    """How many images lie within `NEAR` of the range tried of each of the settings."""
    images = to_coordinates(float_column(rows, "steps"), float_column(rows, "guidance"))
    room = np.maximum(np.ptp(images, axis=0), 1e-9) * NEARBY_SHARE
    found: Any = True
    for axis, asked in enumerate((steps, guidance)):
        if asked is not None:
            at = to_coordinates(asked, asked)[:, axis]
            found = found & (np.abs(images[None, :, axis] - at[:, None]) <= room[axis])
    return np.asarray(found.sum(axis=1))


def average_over_steps(one: FittedResponse, here: Grid, steps: Floats) -> Floats:
    """(m, p) columns at steps (m,), averaged over the guidance tried."""
    guidance = np.linspace(here.guidance[0], here.guidance[-1], GRID_GUIDANCE)
    each = one.columns(to_coordinates(steps[:, None], guidance[None, :]).reshape(-1, 2))
    return each.reshape(len(steps), len(guidance), -1).mean(axis=1)


def average_over_guidance(one: FittedResponse, here: Grid, guidance: Floats) -> Floats:
    """(m, p) columns at guidance (m,), averaged over the logarithm of the steps tried."""
    steps = np.geomspace(here.steps[0], here.steps[-1], GRID_STEPS)
    each = one.columns(to_coordinates(steps[None, :], guidance[:, None]).reshape(-1, 2))
    return each.reshape(len(guidance), len(steps), -1).mean(axis=1)


def step_gains(one: FittedResponse, here: Grid, steps: Floats) -> Floats:
    """(m, p) what one more step adds to columns at steps (m,); the last tried is compared with the one before."""
    start = np.minimum(steps, max(here.steps[-1] - 1, here.steps[0]))
    return average_over_steps(one, here, np.minimum(start + 1, here.steps[-1])) - average_over_steps(one, here, start)


def fit_responses(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float], seed: int
) -> Iterator[tuple[str, list[FittedResponse]]]:
    """Each engine, and its `TARGETS` fitted for bands with the same draws of clusters."""
    models = {(row["engine"], row["metric"]): row for row in regression.filter("chosen").iter_rows(named=True)}
    shares = normalize_weights(weights)
    for engine, everything in split_by_engine(measured_images(scores)):
        rows = with_weighted(everything.drop_nulls(tried_images(everything)), weights)
        of_engine = {metric: models[engine, metric] for metric in METRIC_LABELS if (engine, metric) in models}
        weighed = [row["band_pieces"] or 0 for metric, row in of_engine.items() if shares[metric]]
        alone = {metric: model for metric, row in of_engine.items() if (model := read_model(row))}
        found = []
        for target in TARGET_LABELS:
            row = of_engine.get(target) or {"band_pieces": max(weighed, default=0), "flat_p": None}
            chosen = (alone[target],) if target in alone else _together(rows, alone, shares)
            found.append(_fitted(rows, target, row, chosen, everything.height - rows.height, seed))
        yield engine, found


def _together(
    rows: pl.DataFrame, alone: Mapping[str, tuple[BasisForm, Floats]], shares: Mapping[str, float]
) -> tuple[tuple[BasisForm, Floats], ...]:
    """The metrics' models as one of their weighted z-scores; empty where one has none, or where all are flat alone."""
    spread = {metric: float_column(rows.drop_nulls(metric), metric) for metric, share in shares.items() if share}
    counted = {metric: values for metric, values in spread.items() if len(values) > 1 and np.ptp(values) > 0}
    if not counted.keys() <= alone.keys() or not any(alone[metric][0].degree for metric in counted):
        return ()
    total = sum(shares[metric] for metric in counted)
    found, middle = [], 0.0
    for metric, values in counted.items():
        scale = shares[metric] / total / float(np.std(values, ddof=1))
        form, coefficients = alone[metric]
        found.append((form, scale * coefficients))
        middle += scale * float(values.mean())
    return (*found, (replace(form, name="mean", degree=0, knots=None), np.array([-middle])))


def _fitted(
    rows: pl.DataFrame,
    target: str,
    model: Mapping[str, Any],
    chosen: tuple[tuple[BasisForm, Floats], ...],
    unset: int,
    seed: int,
) -> FittedResponse:
    usable, sample = make_sample(rows, target, seed)
    reason = reason_not_fitted(rows, target, sample)
    unset_note = f"{unset} images have no {' or no '.join(tried_images(rows))}" if unset else None
    if reason:
        return FittedResponse(
            target, usable, note=summary_columns(reason, *constant_settings(rows, sample.settings), unset_note)
        )
    p = model["flat_p"]
    mean = make_form(sample.settings, "mean", 0)
    if p is None:
        p = flatness_p_value(sample, model_forms(sample.settings), mean, seed)
    pieces = max_pieces(sample, model["band_pieces"] or 0)
    degree = next(d for d in (3, 2, 1) if d == 1 or (d + 1) * (d + 2) / 2 * IMAGES_PER_TERM <= len(sample.y))
    form = make_form(sample.settings, "band", degree, pieces)
    # A cubic follows what more steps do; guidance may peak more sharply.
    bent = make_form(sample.settings, "band", pieces=2, crossed=True)
    if not pieces and len(bent.terms()) * IMAGES_PER_TERM <= len(sample.y):
        form = bent
    notes = constant_settings(rows, sample.settings)
    if degree < 3:
        notes.append(f"{len(sample.y)} images bear no more than a polynomial of degree {degree}")
    fitted = fit_least_squares(form, sample, sample.clusters.weights(seed))
    prompts = int(sample.clusters.prompts.max()) + 1
    if sample.clusters.by == "image" and prompts < len(sample.y):
        notes.append(f"bands hold for these prompts ({prompts}) alone")
    chosen = chosen or ((fitted.form, fitted.coefficients),)
    return FittedResponse(
        target, usable, p, sample, fitted, chosen, summary_columns(*notes, _thin(rows, sample), unset_note)
    )


def _thin(rows: pl.DataFrame, sample: RegressionSample) -> str | None:
    """Which corners of what was tried have too few images to say much."""
    if "guidance" not in tried_images(rows) or not np.ptp(sample.settings, axis=0).all():
        return None
    low, high = sample.settings.min(axis=0), sample.settings.max(axis=0)
    place = (sample.settings - low) / (high - low)
    corners = {
        f"{words[0]} steps with {words[1]} guidance": ((abs(place - ends) <= 1 / 3).all(axis=1)).sum()
        for words, ends in (
            (("few", "low"), (0, 0)),
            (("few", "high"), (0, 1)),
            (("many", "low"), (1, 0)),
            (("many", "high"), (1, 1)),
        )
    }
    few = [f"{where} ({count})" for where, count in corners.items() if count < MIN_IMAGES]
    return f"too few images of {', '.join(few)}" if few else None
