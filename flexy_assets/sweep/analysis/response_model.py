"""The one model of a response: an average over forms, with bands, evaluated at any settings.

Surface, curves, regions, best settings and fronts are all read from it. The forms are weighted by their error on
clusters left out (pseudo-BMA+: Yao et al. 2018, Bayesian Analysis 13), and each refit of the bootstrap is one of a
form drawn by its weight. So the spread of these draws holds both how sure each form is and how far they disagree. What
a choice of the highest estimate promises too much is found by refits of the average itself, each with its own choice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, Final

import numpy as np
import polars as pl

from flexy_assets.sweep.analysis.basis_functions import Form, make_form, make_process, to_coordinates
from flexy_assets.sweep.analysis.clusters import BOOTSTRAP_DRAWS, find_clusters
from flexy_assets.sweep.analysis.regression import RegressionFit, RegressionSample, fit_form, flatness_p_value
from flexy_assets.sweep.analysis.rows import (
    MIN_IMAGES,
    NO_GUIDANCE,
    TARGET_LABELS,
    Floats,
    Row,
    add_weighted_overall,
    describe_shares,
    effective_guidance,
    float_column,
    join_notes,
    make_frame,
    setting_names,
    split_by_engine,
    weigh_metrics,
)
from flexy_assets.sweep.analysis.schemas import Schema

IMAGES_PER_TERM: Final = 5
"""With fewer, a fit would follow each image."""
FLAT_LEVEL: Final = 0.05
"""Significance level: above it a response counts as flat."""
GRID_STEPS: Final = 21
GRID_GUIDANCE: Final = 13
NEARBY_SHARE: Final = 1 / 6
"""Share of the range tried, on either side, within which images count as near a setting."""
MODELS: Final = ("quadratic", "additive", "spline", "process", "average")
"""The forms of the average, simplest first: a polynomial, a sum of splines, a spline surface, a Gaussian process."""


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
class FormModel:
    """One form of an average: its coefficients (p,), its `weight`, and its R² and error on clusters left out."""

    form: Form
    coefficients: Floats
    weight: float
    r2: float
    rmse: float


@dataclass(frozen=True)
class FittedResponse:
    """One engine and target, ready for bands: `models` are empty where `unfitted` says why; their weights add up to 1.

    `flat_p` is the probability of such a response by chance. `r2` and `rmse` are the average's on clusters left out.
    `drawn` (draws, p) are coefficients of single forms, for the bands; `refits` (draws, p) those of the average, all
    forms refitted to the same resampled clusters. `overall_weight` is a metric's share of overall.
    """

    engine: str
    target: str
    rows: pl.DataFrame
    sample: RegressionSample
    note: str | None = None
    flat_p: float | None = None
    models: tuple[FormModel, ...] = ()
    r2: float | None = None
    rmse: float | None = None
    drawn: Floats = field(default_factory=lambda: np.empty((0, 0)))
    refits: Floats = field(default_factory=lambda: np.empty((0, 0)))
    unfitted: str | None = None
    overall_weight: float | None = None

    @property
    def moves(self) -> bool:
        """Whether the response is significant."""
        return self.flat_p is not None and self.flat_p < FLAT_LEVEL

    @property
    def flat(self) -> str | None:
        """A note that the response is not significant; None where it is, or where nothing could be tested."""
        if not self.models or self.moves:
            return None
        return f"no significant effect of {' or '.join(setting_names(self.rows))}"

    @cached_property
    def bend_p(self) -> float:
        """The probability of such a response by chance if it is a plane over the settings' logarithms."""
        settings = self.sample.settings
        bent = [make_form(settings, "quadratic", 2), make_form(settings, "spline", pieces=1)]
        return flatness_p_value(self.sample, bent, make_form(settings, "linear", 1), seed=0)

    @property
    def deviation(self) -> float:
        """The standard deviation between images."""
        return float(np.std(self.sample.y))

    @cached_property
    def coefficients(self) -> Floats:
        """(p,) those of the average."""
        return np.concatenate([model.weight * model.coefficients for model in self.models])

    def columns(self, settings: Floats) -> Floats:
        """Return (m, p) the columns of all forms at settings (m, 2)."""
        return np.hstack([model.form.columns(settings) for model in self.models])

    def predict(self, settings: Floats) -> Floats:
        """Return (m,) the expectation at settings (m, 2)."""
        parts = [model.weight * (model.form.columns(settings) @ model.coefficients) for model in self.models]
        return np.sum(parts, axis=0)

    def deviations(self, columns: Floats) -> tuple[Floats, Floats]:
        """Return the expectation (m,) of columns (m, p) or their differences, and refits less that (draws, m)."""
        return columns @ self.coefficients, (self.drawn - self.coefficients) @ columns.T

    def bands(self, columns: Floats) -> tuple[Floats, Floats, Floats]:
        """Return (m,) the expectation, and the ends of its pointwise 95 % band."""
        expected, deviation = self.deviations(columns)
        margin = self.sample.clusters.t * np.sqrt((deviation**2).mean(axis=0))
        return expected, expected - margin, expected + margin


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
    scores: pl.DataFrame,
    weights: Mapping[str, float] | None = None,
    suspect: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[FittedResponse]:
    """Return each engine's fitted `TARGET_LABELS`, with the same draws of clusters.

    `weights` and `suspect` are those of `weigh_metrics`.
    """
    responses = []
    for engine, all_rows in split_by_engine(scores):
        shares, reasons = weigh_metrics(all_rows, weights, suspect)
        rows = add_weighted_overall(all_rows.drop_nulls(setting_names(all_rows)), shares)
        dropped = all_rows.height - rows.height
        dropped_note = f"{dropped} images have no {' or no '.join(setting_names(rows))}" if dropped else None
        for target in TARGET_LABELS:
            own = [describe_shares(shares), *reasons] if target == "overall" else []
            response = fit_response(engine, target, rows, join_notes(*own, dropped_note), seed)
            responses.append(replace(response, overall_weight=shares.get(target)))
    return responses


def tabulate_responses(
    responses: Iterable[FittedResponse], rows_of: Callable[[FittedResponse], Iterable[Row]], schema: Schema
) -> pl.DataFrame:
    """Return the rows of each response, with its engine and target, as a table of the schema."""
    rows = ({"engine": each.engine, "target": each.target, **row} for each in responses for row in rows_of(each))
    return make_frame(rows, schema)


def fit_response(
    engine: str, target: str, all_rows: pl.DataFrame, also: str | None = None, seed: int = 0
) -> FittedResponse:
    """Return the response of one target of one engine's images; `also` is added to its note."""
    rows = all_rows.drop_nulls([target, *setting_names(all_rows)])
    settings = to_coordinates(float_column(rows, "steps"), float_column(rows, "guidance"))
    sample = RegressionSample(settings, float_column(rows, target), find_clusters(rows, seed))
    notes = note_constant_settings(all_rows, settings)
    if reason := explain_unfitted(all_rows, target, sample):
        return FittedResponse(engine, target, rows, sample, join_notes(reason, *notes, also), unfitted=reason)
    mean, linear, quadratic = (
        make_form(settings, name, degree) for degree, name in enumerate(("mean", "linear", "quadratic"))
    )
    p = flatness_p_value(sample, [linear, quadratic, make_form(settings, "spline", pieces=1)], mean, seed)
    fits = fit_forms(sample)
    weights = weigh_forms(fits, sample, seed)
    errors = [fit.errors for fit in fits]
    total = float((fit_form(mean, sample).errors ** 2).sum())
    models = []
    for fit, weight in zip(fits, weights.tolist(), strict=True):
        models.append(FormModel(fit.form, fit.coefficients, weight, *measure_errors(fit.errors, total)))
    prompts = int(sample.clusters.prompts.max()) + 1
    if sample.clusters.by != "prompt" and prompts < len(sample.y):
        notes.append(f"bands apply to these {prompts} prompts only")
    note = join_notes(*notes, _sparse_corners_note(rows, sample), also)
    r2, rmse = measure_errors(weights @ np.array(errors), total)
    drawn, refits = draw_average(fits, weights, sample, seed), refit_average(models, fits, sample, seed)
    return FittedResponse(engine, target, rows, sample, note, p, tuple(models), r2, rmse, drawn, refits)


def measure_errors(errors: Floats, total: float) -> tuple[float, float]:
    """Return R² and root mean square of errors (n,); `total` is the sum of squares of the mean's."""
    squares = float((errors**2).sum())
    return 1 - squares / total, float(np.sqrt(squares / len(errors)))


def fit_forms(sample: RegressionSample) -> list[RegressionFit]:
    """Return the fits of the forms that the average is over: those that bend and have enough images a term."""
    forms = [
        make_form(sample.settings, "quadratic", 2),
        make_form(sample.settings, "additive", pieces=2),
        make_form(sample.settings, "spline", pieces=1),
    ]
    fits = [fit_form(form, sample) for form in forms if len(form.penalty) * IMAGES_PER_TERM <= len(sample.y)]
    variance = min(fit.variance for fit in fits or [fit_form(make_form(sample.settings, "linear", 1), sample)])
    y = sample.y - sample.block_effects[1][sample.clusters.blocks]
    return [*fits, fit_form(make_process(sample.settings, y, float(np.sqrt(max(variance, 1e-300)))), sample)]


def weigh_forms(fits: list[RegressionFit], sample: RegressionSample, seed: int) -> Floats:
    """Return (forms,) weights, 1 in total, by the error on clusters left out, averaged over resampled clusters."""
    losses = sample.clusters.sums(np.stack([fit.whitened_errors**2 for fit in fits], axis=1))
    drawn = np.maximum(sample.clusters.weights(seed) @ losses / len(sample.y), 1e-300)
    likelihoods = -len(sample.y) / 2 * np.log(drawn)
    weights = np.exp(likelihoods - likelihoods.max(axis=1, keepdims=True))
    return np.asarray((weights / weights.sum(axis=1, keepdims=True)).mean(axis=0))


def draw_average(fits: list[RegressionFit], weights: Floats, sample: RegressionSample, seed: int) -> Floats:
    """Return (draws, p) refits of the average: each is one of a form, as often as its weight says."""
    cluster_weights = sample.clusters.weights(seed)
    shares = (np.arange(BOOTSTRAP_DRAWS) + 0.5) / BOOTSTRAP_DRAWS
    selected = np.searchsorted(np.cumsum(weights)[:-1], shares)
    sizes = [len(fit.coefficients) for fit in fits]
    drawn, end = np.zeros((BOOTSTRAP_DRAWS, sum(sizes))), 0
    for index, (fit, size) in enumerate(zip(fits, sizes, strict=True)):
        of_form = selected == index
        if of_form.any():
            drawn[of_form, end : end + size] = fit.draw(cluster_weights[of_form], seed)
        end += size
    return drawn


def refit_average(
    models: Sequence[FormModel], fits: Sequence[RegressionFit], sample: RegressionSample, seed: int
) -> Floats:
    """Return (draws, p) coefficients of the average refitted to resampled clusters, to first order."""
    influences = np.hstack([model.weight * fit.influences for model, fit in zip(models, fits, strict=True)])
    coefficients = np.concatenate([model.weight * model.coefficients for model in models])
    clusters = sample.clusters
    return coefficients + clusters.widening * (clusters.weights(seed) - 1) @ influences


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
