"""The response of each score to steps and guidance: curves and surfaces with bands, effects, and the plateau."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets.sweep.analysis.basis_functions import make_form, to_coordinates
from flexy_assets.sweep.analysis.clusters import CONFIDENCE_LEVEL
from flexy_assets.sweep.analysis.confidence_bands import (
    FittedResponse,
    average_over_guidance,
    average_over_steps,
    compute_step_gains,
    count_images_nearby,
    fit_responses,
    make_grid,
)
from flexy_assets.sweep.analysis.regression import RegressionSample, flatness_p_value
from flexy_assets.sweep.analysis.rows import TARGET_LABELS, Floats, Row, float_column, join_notes, make_frame
from resources.errors import BadInputError

RESPONSE_SCHEMA: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "target": pl.String(),
    "curve": pl.String(),
    "steps": pl.Int64(),
    "guidance": pl.Float64(),
    "predicted": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "slope": pl.Float64(),
    "slope_low": pl.Float64(),
    "slope_high": pl.Float64(),
    "images": pl.Int64(),
    "note": pl.String(),
}
EFFECTS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "target": pl.String(),
    "effect": pl.String(),
    "n": pl.Int64(),
    "steps_from": pl.Int64(),
    "steps_to": pl.Int64(),
    "guidance_from": pl.Float64(),
    "guidance_to": pl.Float64(),
    "change": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "p": pl.Float64(),
    "note": pl.String(),
}
RETURNS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "target": pl.String(),
    "n": pl.Int64(),
    "least_gain": pl.Float64(),
    "steps_from": pl.Int64(),
    "steps_to": pl.Int64(),
    "beyond": pl.Int64(),
    "low": pl.Int64(),
    "high": pl.Int64(),
    "summary": pl.String(),
    "note": pl.String(),
}

MAX_STEPS: Final = 300
"""Step counts at which gains are computed; more are thinned evenly in their logarithm."""
MIN_GAIN: Final[dict[str, float]] = {"clip_score": 0.001}
MIN_GAIN_SD: Final = 0.02
"""The smallest worthwhile gain of a metric not in `MIN_GAIN`, in standard deviations between images."""


def response_table(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """Return the expected value of each target over steps, guidance and both, with pointwise 95 % bands.

    `curve` "steps" is the mean over the guidance tried (evenly), `guidance` null; "guidance" the mean over
    the steps tried (evenly in log2), `steps` null; "surface" every pair of a grid. `slope` is what one more
    step, or one more of guidance, adds (the marginal effect). `images` lie within a sixth of the range on
    either side.
    `target` "overall" is the weighted mean of z-scores. A target that cannot be fitted has one row whose
    `note` says why. Returns `RESPONSE_SCHEMA`.
    """
    rows = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        for response in targets:
            rows += [{"engine": engine, "target": response.target, **row} for row in _tabulate_response(response)]
    return make_frame(rows, RESPONSE_SCHEMA)


def effects_table(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """Return the effects of steps, guidance and their interaction on each target, with 95 % intervals.

    `change` is what the target gains from the 10th to the 90th percentile of the setting, the other one
    averaged out; for "interaction" how much more that is of steps at high guidance than at low. A response that
    rises and falls may change little between its ends: `p` tests for an effect of any shape.
    Returns `EFFECTS_SCHEMA`, three rows an engine and target.
    """
    rows = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        for response in targets:
            rows += [{"engine": engine, "target": response.target, **row} for row in _tabulate_effects(response, seed)]
    return make_frame(rows, EFFECTS_SCHEMA)


def diminishing_returns_table(
    scores: pl.DataFrame,
    regression: pl.DataFrame,
    weights: Mapping[str, float] | None = None,
    least_gain: Mapping[str, float] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Return the number of steps from which one more gains less than `least_gain`, with its 95 % interval.

    `least_gain` is the smallest worthwhile gain of one more step, by target in its own unit; by default `MIN_GAIN`,
    else `MIN_GAIN_SD` standard deviations between images. `beyond` is the first number of steps
    from which on every further one, at the mean over the guidance tried, gains less; `low` and `high` are its
    interval, the middle 95 % of refits to resampled clusters. Where the last step tried still gains as much, `beyond`
    is null; where it may, `high` is. `summary` is a sentence. Raises `BadInputError` for a gain of no target, or that
    is not above 0. Returns `RETURNS_SCHEMA`, one row an engine and target.
    """
    gains = {**MIN_GAIN, **(least_gain or {})}
    for target, gain in gains.items():
        if target not in TARGET_LABELS or not 0 < gain < np.inf:
            raise BadInputError(
                f"invalid least gain {gain} of {target!r}: give a number above 0 for one of {', '.join(TARGET_LABELS)}"
            )
    rows = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        for response in targets:
            rows.append({"engine": engine, "target": response.target, **_find_plateau(response, gains)})
    return make_frame(rows, RETURNS_SCHEMA)


def _tabulate_response(response: FittedResponse) -> list[Row]:
    if response.fit is None:
        return [{"note": response.note}]
    grid = make_grid(response.rows)
    guided = grid.guidance if grid.guided else None
    rows = _tabulate_curve(
        "steps",
        grid.steps,
        None,
        response,
        average_over_steps(response, grid, grid.steps),
        compute_step_gains(response, grid, grid.steps),
    )
    if guided is not None:
        half = 0.005 * max(float(np.ptp(guided)), 1e-9)
        ends = np.clip(guided - half, guided[0], None), np.clip(guided + half, None, guided[-1])
        rise = average_over_guidance(response, grid, ends[1]) - average_over_guidance(response, grid, ends[0])
        slope = rise / np.maximum(ends[1] - ends[0], 1e-12)[:, None]
        rows += _tabulate_curve(
            "guidance", None, guided, response, average_over_guidance(response, grid, guided), slope
        )
    steps, guidance = grid.flat()
    surface = response.columns(to_coordinates(steps, guidance))
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
    named_values = {name: values.tolist() for name, values in columns.items() if values is not None}
    return [
        {"curve": curve, "note": response.note, **dict(zip(named_values, values, strict=True))}
        for values in zip(*named_values.values(), strict=True)
    ]


def _tabulate_effects(response: FittedResponse, seed: int) -> list[Row]:
    names = ["steps", "guidance", "interaction"]
    if response.fit is None or response.sample is None:
        return [{"effect": name, "n": response.rows.height, "note": response.note} for name in names]
    grid, settings = make_grid(response.rows), response.sample.settings
    (low_steps, low_guidance), (high_steps, high_guidance) = np.quantile(settings, [0.1, 0.9], axis=0)
    low_steps, high_steps, low_guidance, high_guidance = (
        round(2**low_steps),
        round(2**high_steps),
        round(2**low_guidance, 1),
        round(2**high_guidance, 1),
    )
    steps = average_over_steps(response, grid, np.array([low_steps, high_steps], dtype=np.float64))
    guidance = average_over_guidance(response, grid, np.array([low_guidance, high_guidance]))
    corners = response.columns(
        to_coordinates(
            [low_steps, low_steps, high_steps, high_steps], [low_guidance, high_guidance, low_guidance, high_guidance]
        )
    )
    contrasts = {
        "steps": steps[1] - steps[0],
        "guidance": guidance[1] - guidance[0],
        "interaction": corners[3] - corners[2] - corners[1] + corners[0],
    }
    varies = np.ptp(settings, axis=0) > 0
    is_estimable = {"steps": varies[0], "guidance": varies[1], "interaction": varies.all()}
    rows = []
    for name, contrast in contrasts.items():
        row: Row = {"effect": name, "n": response.rows.height, "note": response.note}
        if is_estimable[name]:
            change, low, high = response.bands(contrast[None, :])
            row |= {"change": float(change[0]), "low": float(low[0]), "high": float(high[0])}
            row |= {"steps_from": low_steps, "steps_to": high_steps, "p": _effect_p_value(response.sample, name, seed)}
            row |= {"guidance_from": low_guidance, "guidance_to": high_guidance} if grid.guided else {}
        rows.append(row)
    return rows


def _effect_p_value(sample: RegressionSample, effect: str, seed: int) -> float:
    """Return the p-value of one effect, given a model of the others."""
    additive = make_form(sample.settings, "additive", pieces=1)
    if effect == "interaction":
        return flatness_p_value(
            sample,
            [make_form(sample.settings, "quadratic", 2), make_form(sample.settings, "spline", pieces=1)],
            additive,
            seed,
        )
    reduced_settings = sample.settings.copy()
    reduced_settings[:, 0 if effect == "steps" else 1] = 0
    reduced_form = make_form(reduced_settings, "spline", pieces=1)
    return flatness_p_value(sample, [make_form(sample.settings, "linear", 1), additive], reduced_form, seed)


def _find_plateau(response: FittedResponse, min_gains: Mapping[str, float]) -> Row:
    if response.fit is None or response.sample is None:
        return {"n": response.rows.height, "note": response.note}
    unit = "SD" if response.target == "overall" else TARGET_LABELS[response.target]
    min_gain = min_gains.get(response.target, MIN_GAIN_SD * float(np.std(float_column(response.rows, response.target))))
    grid = make_grid(response.rows)
    first, last = int(grid.steps[0]), int(grid.steps[-1])
    row: Row = {
        "n": response.rows.height,
        "least_gain": min_gain,
        "steps_from": first,
        "steps_to": last,
        "note": join_notes(response.flat, response.note),
    }
    if first == last:
        return row
    steps = (
        np.unique(np.geomspace(first, last - 1, MAX_STEPS).round())
        if last - first > MAX_STEPS
        else np.arange(first, last, dtype=np.float64)
    )
    columns = compute_step_gains(response, grid, steps)
    clusters = response.sample.clusters
    beyond = _last_worthwhile_step(steps, response.bands(columns)[0] >= min_gain, first)
    gain, deviation = response.deviations(columns)
    plateau_draws = [
        _last_worthwhile_step(steps, is_worthwhile, first)
        for is_worthwhile in gain + deviation * clusters.t / clusters.normal >= min_gain
    ]
    tails = np.quantile(plateau_draws, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], method="inverted_cdf")
    low, high = min(beyond, int(tails[0])), max(beyond, int(tails[1]))
    row |= {"beyond": beyond if beyond < last else None, "low": low, "high": high if high < last else None}
    row["summary"] = _summary_sentence(row, unit, last)
    return row


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
