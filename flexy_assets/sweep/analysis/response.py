"""The response of each score to steps and guidance: curves and surfaces with bands, effects, and the plateau."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets.sweep.analysis.basis_functions import make_form, to_coordinates
from flexy_assets.sweep.analysis.clusters import CONFIDENCE_LEVEL
from flexy_assets.sweep.analysis.regression import RegressionSample, flatness_p_value
from flexy_assets.sweep.analysis.response_model import (
    MODELS,
    FittedResponse,
    average_columns,
    compute_step_gains,
    count_images_nearby,
    make_grid,
    tabulate_responses,
)
from flexy_assets.sweep.analysis.rows import TARGET_LABELS, Floats, Row, float_column, join_notes, make_rows
from flexy_assets.sweep.analysis.schemas import EFFECTS_SCHEMA, REGRESSION_SCHEMA, RESPONSE_SCHEMA, RETURNS_SCHEMA
from resources.errors import BadInputError

MAX_STEPS: Final = 300
"""Step counts at which gains are computed; more are thinned evenly in their logarithm."""
MIN_GAIN: Final[dict[str, float]] = {"clip_score": 0.001}
MIN_GAIN_SD: Final = 0.02
"""The smallest worthwhile gain of a metric not in `MIN_GAIN`, in standard deviations between images."""


def regression_table(responses: Iterable[FittedResponse]) -> pl.DataFrame:
    """Return the forms that each target's response is an average of, and the average itself.

    `r2` and `rmse` are on clusters left out, against the mean of all; `weight` is the form's in the average. Returns
    `REGRESSION_SCHEMA`, a row an engine, target and model.
    """
    return tabulate_responses(responses, _tabulate_models, REGRESSION_SCHEMA)


def response_table(responses: Iterable[FittedResponse]) -> pl.DataFrame:
    """Return the expected value of each target over steps, guidance and both, with pointwise 95 % bands.

    `curve` "steps" is the mean over the guidance tried (evenly), `guidance` null; "guidance" the mean over the steps
    tried (evenly in log2), `steps` null; "surface" every pair of a grid. `slope` is the marginal effect; `images` lie
    within a sixth of the range on either side. A target that cannot be fitted has one row with a `note`. Returns
    `RESPONSE_SCHEMA`.
    """
    return tabulate_responses(responses, _tabulate_response, RESPONSE_SCHEMA)


def effects_table(responses: Iterable[FittedResponse], seed: int = 0) -> pl.DataFrame:
    """Return the effects of steps, guidance and their interaction on each target, with 95 % intervals.

    `change` is what the target gains from the 10th to the 90th percentile of the setting, the other one
    averaged out; for "interaction" how much more that is of steps at high guidance than at low. A response that
    rises and falls may change little between its ends: `p` tests for an effect of any shape.
    Returns `EFFECTS_SCHEMA`, three rows an engine and target.
    """
    return tabulate_responses(responses, partial(_tabulate_effects, seed=seed), EFFECTS_SCHEMA)


def diminishing_returns_table(
    responses: Iterable[FittedResponse], least_gain: Mapping[str, float] | None = None
) -> pl.DataFrame:
    """Return the number of steps from which one more gains less than `least_gain`, with its 95 % interval.

    `least_gain` is by target in its own unit; by default `MIN_GAIN`, else `MIN_GAIN_SD` standard deviations between
    images. `beyond` is the first number of steps from which on every further one, at the mean over the guidance tried,
    gains less; `low` and `high` are the middle 95 % of refits to resampled clusters. Where the last step tried still
    gains as much, `beyond` is null; where it may, `high` is. Raises `BadInputError` for a gain of no target, or that is
    not above 0. Returns `RETURNS_SCHEMA`, one row an engine and target.
    """
    gains = {**MIN_GAIN, **(least_gain or {})}
    for target, gain in gains.items():
        if target not in TARGET_LABELS or not 0 < gain < np.inf:
            raise BadInputError(
                f"invalid least gain {gain} of {target!r}: give a number above 0 for one of {', '.join(TARGET_LABELS)}"
            )
    return tabulate_responses(responses, lambda response: [_find_plateau(response, gains)], RETURNS_SCHEMA)


def _tabulate_models(response: FittedResponse) -> list[Row]:
    sample, models = response.sample, {model.form.name: model for model in response.models}
    shared: Row = {"n": len(sample.y), "flat_p": response.flat_p, "note": response.note}
    shared["overall_weight"] = response.overall_weight
    if models:
        share = sample.within if sample.clusters.prompts.max() + 1 < len(sample.y) else None
        shared |= {"prompt_share": share, "clusters": sample.clusters.count, "clusters_by": sample.clusters.by}
    rows = []
    for name in MODELS:
        row = shared | {"model": name}
        if name == "average":
            row |= {"r2": response.r2, "rmse": response.rmse}
        elif model := models.get(name):
            row |= {"weight": model.weight, "r2": model.r2, "rmse": model.rmse}
        rows.append(row)
    return rows


def _tabulate_response(response: FittedResponse) -> list[Row]:
    if not response.models:
        return [{"note": response.note}]
    grid = make_grid(response.rows)
    level = average_columns(response, grid, "steps", grid.steps)
    rows = _tabulate_curve("steps", grid.steps, None, response, level, compute_step_gains(response, grid, grid.steps))
    guidance = grid.guidance
    if grid.guided:
        half = 0.005 * max(float(np.ptp(guidance)), 1e-9)
        ends = np.clip(guidance - half, guidance[0], None), np.clip(guidance + half, None, guidance[-1])
        low, level, high = (average_columns(response, grid, "guidance", each) for each in (ends[0], guidance, ends[1]))
        slope = (high - low) / np.maximum(ends[1] - ends[0], 1e-12)[:, None]
        rows += _tabulate_curve("guidance", None, guidance, response, level, slope)
    steps, guidance = grid.flat()
    surface = response.columns(grid.pairs)
    return rows + _tabulate_curve("surface", steps, guidance if grid.guided else None, response, surface, None)


def _tabulate_curve(
    curve: str,
    steps: Floats | None,
    guidance: Floats | None,
    response: FittedResponse,
    level_columns: Floats,
    slope_columns: Floats | None,
) -> list[Row]:
    """Return rows of `RESPONSE_SCHEMA` from design columns: of the level at each setting, and of its slope."""
    columns: dict[str, Floats | None] = {"steps": steps, "guidance": guidance}
    columns |= zip(("predicted", "low", "high"), response.bands(level_columns), strict=True)
    if slope_columns is not None:
        columns |= zip(("slope", "slope_low", "slope_high"), response.bands(slope_columns), strict=True)
    columns["images"] = count_images_nearby(response.rows, steps, guidance)
    return [{"curve": curve, "note": response.note, **row} for row in make_rows(columns)]


def _tabulate_effects(response: FittedResponse, seed: int) -> list[Row]:
    shared: Row = {"n": response.rows.height, "note": response.note}
    if not response.models:
        return [{"effect": name, **shared} for name in ("steps", "guidance", "interaction")]
    grid, settings = make_grid(response.rows), response.sample.settings
    low, high = 2 ** np.quantile(settings, [0.1, 0.9], axis=0)
    steps = np.array([round(low[0]), round(high[0])], dtype=np.float64)
    guidance = np.array([round(low[1], 1), round(high[1], 1)])
    corners = response.columns(to_coordinates(steps[:, None], guidance).reshape(-1, 2))
    by_steps = average_columns(response, grid, "steps", steps)
    by_guidance = average_columns(response, grid, "guidance", guidance)
    steps_vary, guidance_varies = np.ptp(settings, axis=0) > 0
    contrasts = {
        "steps": (steps_vary, by_steps[1] - by_steps[0]),
        "guidance": (guidance_varies, by_guidance[1] - by_guidance[0]),
        "interaction": (steps_vary and guidance_varies, corners[3] - corners[2] - corners[1] + corners[0]),
    }
    tried: Row = {"steps_from": int(steps[0]), "steps_to": int(steps[1])}
    if grid.guided:
        tried |= {"guidance_from": guidance[0], "guidance_to": guidance[1]}
    rows = []
    for name, (is_estimable, contrast) in contrasts.items():
        row = {"effect": name, **shared}
        if is_estimable:
            change, low, high = (float(value[0]) for value in response.bands(contrast[None, :]))
            p = _effect_p_value(response.sample, name, seed)
            row |= {"change": change, "low": low, "high": high, "p": p} | tried
        rows.append(row)
    return rows


def _effect_p_value(sample: RegressionSample, effect: str, seed: int) -> float:
    """Return the p-value of one effect, given a model of the others."""
    additive = make_form(sample.settings, "additive", pieces=1)
    if effect == "interaction":
        quadratic = make_form(sample.settings, "quadratic", 2)
        surface = make_form(sample.settings, "spline", pieces=1)
        return flatness_p_value(sample, [quadratic, surface], additive, seed)
    reduced_settings = sample.settings.copy()
    reduced_settings[:, 0 if effect == "steps" else 1] = 0
    reduced_form = make_form(reduced_settings, "spline", pieces=1)
    return flatness_p_value(sample, [make_form(sample.settings, "linear", 1), additive], reduced_form, seed)


def _find_plateau(response: FittedResponse, min_gains: Mapping[str, float]) -> Row:
    if not response.models:
        return {"n": response.rows.height, "note": response.note}
    min_gain = min_gains.get(response.target, MIN_GAIN_SD * float(np.std(float_column(response.rows, response.target))))
    grid = make_grid(response.rows)
    first, last = int(grid.steps[0]), int(grid.steps[-1])
    row: Row = {"n": response.rows.height, "least_gain": min_gain, "steps_from": first, "steps_to": last}
    row["note"] = join_notes(response.flat, response.note)
    if first == last:
        return row
    steps = np.arange(first, last, dtype=np.float64)
    if len(steps) > MAX_STEPS:
        steps = np.unique(np.geomspace(first, last - 1, MAX_STEPS).round())
    columns, clusters = compute_step_gains(response, grid, steps), response.sample.clusters
    beyond = _last_worthwhile_step(steps, response.bands(columns)[0] >= min_gain, first)
    gain, deviation = response.deviations(columns)
    plateau_draws = [
        _last_worthwhile_step(steps, is_worthwhile, first)
        for is_worthwhile in gain + deviation * clusters.t / clusters.normal >= min_gain
    ]
    tails = np.quantile(plateau_draws, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], method="inverted_cdf")
    low, high = min(beyond, int(tails[0])), max(beyond, int(tails[1]))
    row |= {"beyond": beyond if beyond < last else None, "low": low, "high": high if high < last else None}
    unit = "SD" if response.target == "overall" else TARGET_LABELS[response.target]
    return row | {"summary": _summary_sentence(row, unit, last)}


def _last_worthwhile_step(steps: Floats, is_worthwhile: NDArray[np.bool_], first: int) -> int:
    """Return the number of steps after the last worthwhile one; the first tried where none is."""
    return int(steps[is_worthwhile.nonzero()[0][-1]]) + 1 if is_worthwhile.any() else first


def _summary_sentence(row: Row, unit: str, last: int) -> str:
    gain = f"{row['least_gain']:.2g} {unit}"
    low, high = row["low"], row["high"]
    if low >= last:
        return f"no plateau up to {last} steps (95 %): one more step still gains {gain}"
    if row["beyond"] is None:
        return f"no plateau up to {last} steps (95 % CI from {low}): one more step is expected to gain {gain}"
    interval = f"{low}–{high}" if high is not None else f"from {low}, no upper end up to {last}"
    return f"plateau from {row['beyond']} steps (95 % CI {interval}): one more step gains less than {gain}"
