"""What steps and guidance do to a score: curves and surfaces with bands, effects, and where more steps cease to pay."""

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
    fit_responses,
    images_nearby,
    make_grid,
    step_gains,
)
from flexy_assets.sweep.analysis.regression import RegressionSample, flatness_p_value
from flexy_assets.sweep.analysis.rows import TARGET_LABELS, Floats, Row, float_column, make_frame, summary_columns
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
    "said": pl.String(),
    "note": pl.String(),
}

MAX_STEPS: Final = 300
"""Numbers of steps at which gains are looked at; more are thinned evenly in their logarithm."""
MIN_GAIN: Final[dict[str, float]] = {"clip_score": 0.001}
MIN_GAIN_SD: Final = 0.02
"""What one more step must gain of a metric not named there, in standard deviations between images."""


def response_table(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """What each target is expected to be over steps, over guidance and over both, with pointwise 95 % bands.

    `curve` "steps" is the mean over the guidance tried (evenly), `guidance` null; "guidance" the mean over
    the steps tried (evenly in log2), `steps` null; "surface" every pair of a grid. `slope` is what one more
    step, or one more of guidance, adds (the marginal effect). `images` lie within a sixth of the range on
    either side.
    `target` "overall" is the weighted mean of z-scores. A target that cannot be fitted has one row whose
    `note` says why. Returns `RESPONSE`.
    """
    found = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        for one in targets:
            found += [{"engine": engine, "target": one.target, **row} for row in _response(one)]
    return make_frame(found, RESPONSE_SCHEMA)


def effects_table(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """How far steps, guidance and their interaction move each target, with 95 % intervals.

    `change` is what the target gains from the 10th to the 90th percentile of the setting, the other one
    averaged out; for "interaction" how much more that is of steps at high guidance than at low. A response that
    rises and falls may change little between its ends: `p` asks whether there is any of that effect, of any
    shape. Returns `EFFECTS`, three rows an engine and target.
    """
    found = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        for one in targets:
            found += [{"engine": engine, "target": one.target, **row} for row in _effects(one, seed)]
    return make_frame(found, EFFECTS_SCHEMA)


def diminishing_returns_table(
    scores: pl.DataFrame,
    regression: pl.DataFrame,
    weights: Mapping[str, float] | None = None,
    least_gain: Mapping[str, float] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Beyond how many steps one more gains less than it should, with a 95 % interval.

    `least_gain` is what one more step must gain, by target in its own unit; `LEAST_GAIN` where a metric is not
    named there, else `LEAST_GAIN_SD` standard deviations between images. `beyond` is the first number of steps
    from which on every further one, at the mean over the guidance tried, gains less; `low` and `high` are its
    interval, the middle 95 % of refits to resampled clusters. Where even the last step tried gains as much, `beyond`
    is null; where it may, `high` is. `said` says it in words. Raises `BadInputError` for a gain of no target, or that
    is not above 0. Returns `RETURNS`, one row an engine and target.
    """
    gains = {**MIN_GAIN, **(least_gain or {})}
    for target, gain in gains.items():
        if target not in TARGET_LABELS or not 0 < gain < np.inf:
            raise BadInputError(
                f"no step can have to gain {gain} of {target!r}: use a number above 0 of {', '.join(TARGET_LABELS)}"
            )
    found = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        for one in targets:
            found.append({"engine": engine, "target": one.target, **_returns(one, gains)})
    return make_frame(found, RETURNS_SCHEMA)


def _response(one: FittedResponse) -> list[Row]:
    if one.fit is None:
        return [{"note": one.note}]
    here = make_grid(one.rows)
    guided = here.guidance if here.guided else None
    found = _curve(
        "steps", here.steps, None, one, average_over_steps(one, here, here.steps), step_gains(one, here, here.steps)
    )
    if guided is not None:
        half = 0.005 * max(float(np.ptp(guided)), 1e-9)
        ends = np.clip(guided - half, guided[0], None), np.clip(guided + half, None, guided[-1])
        rise = average_over_guidance(one, here, ends[1]) - average_over_guidance(one, here, ends[0])
        slope = rise / np.maximum(ends[1] - ends[0], 1e-12)[:, None]
        found += _curve("guidance", None, guided, one, average_over_guidance(one, here, guided), slope)
    steps, guidance = here.flat()
    surface = one.columns(to_coordinates(steps, guidance))
    return found + _curve("surface", steps, guidance if here.guided else None, one, surface, None)


def _curve(
    curve: str, steps: Floats | None, guidance: Floats | None, one: FittedResponse, at: Floats, slope: Floats | None
) -> list[Row]:
    """Rows of `RESPONSE` for rows of columns: at settings, and for the gain from one to the next."""
    columns: dict[str, Floats | None] = {"steps": steps, "guidance": guidance}
    columns |= zip(("predicted", "low", "high"), one.bands(at), strict=True)
    if slope is not None:
        columns |= zip(("slope", "slope_low", "slope_high"), one.bands(slope), strict=True)
    columns["images"] = images_nearby(one.rows, steps, guidance)
    filled = {name: values.tolist() for name, values in columns.items() if values is not None}
    return [
        {"curve": curve, "note": one.note, **dict(zip(filled, values, strict=True))}
        for values in zip(*filled.values(), strict=True)
    ]


def _effects(one: FittedResponse, seed: int) -> list[Row]:
    names = ["steps", "guidance", "interaction"]
    if one.fit is None or one.sample is None:
        return [{"effect": name, "n": one.rows.height, "note": one.note} for name in names]
    here, settings = make_grid(one.rows), one.sample.settings
    (few, little), (many, much) = np.quantile(settings, [0.1, 0.9], axis=0)
    few, many, little, much = round(2**few), round(2**many), round(2**little, 1), round(2**much, 1)
    steps = average_over_steps(one, here, np.array([few, many], dtype=np.float64))
    guidance = average_over_guidance(one, here, np.array([little, much]))
    corners = one.columns(to_coordinates([few, few, many, many], [little, much, little, much]))
    contrasts = {
        "steps": steps[1] - steps[0],
        "guidance": guidance[1] - guidance[0],
        "interaction": corners[3] - corners[2] - corners[1] + corners[0],
    }
    vary = np.ptp(settings, axis=0) > 0
    possible = {"steps": vary[0], "guidance": vary[1], "interaction": vary.all()}
    found = []
    for name, contrast in contrasts.items():
        row: Row = {"effect": name, "n": one.rows.height, "note": one.note}
        if possible[name]:
            change, low, high = one.bands(contrast[None, :])
            row |= {"change": float(change[0]), "low": float(low[0]), "high": float(high[0])}
            row |= {"steps_from": few, "steps_to": many, "p": _effect_p(one.sample, name, seed)}
            row |= {"guidance_from": little, "guidance_to": much} if here.guided else {}
        found.append(row)
    return found


def _effect_p(sample: RegressionSample, effect: str, seed: int) -> float:
    """The probability of so much of one effect by chance, given the others without it."""
    additive = make_form(sample.settings, "additive", pieces=1)
    if effect == "interaction":
        return flatness_p_value(
            sample,
            [make_form(sample.settings, "quadratic", 2), make_form(sample.settings, "spline", pieces=1)],
            additive,
            seed,
        )
    alone = sample.settings.copy()
    alone[:, 0 if effect == "steps" else 1] = 0
    given = make_form(alone, "spline", pieces=1)
    return flatness_p_value(sample, [make_form(sample.settings, "linear", 1), additive], given, seed)


def _returns(one: FittedResponse, least_gain: Mapping[str, float]) -> Row:
    if one.fit is None or one.sample is None:
        return {"n": one.rows.height, "note": one.note}
    unit = "SD" if one.target == "overall" else TARGET_LABELS[one.target]
    least = least_gain.get(one.target, MIN_GAIN_SD * float(np.std(float_column(one.rows, one.target))))
    here = make_grid(one.rows)
    first, last = int(here.steps[0]), int(here.steps[-1])
    row: Row = {
        "n": one.rows.height,
        "least_gain": least,
        "steps_from": first,
        "steps_to": last,
        "note": summary_columns(one.flat, one.note),
    }
    if first == last:
        return row
    steps = (
        np.unique(np.geomspace(first, last - 1, MAX_STEPS).round())
        if last - first > MAX_STEPS
        else np.arange(first, last, dtype=np.float64)
    )
    columns = step_gains(one, here, steps)
    of = one.sample.clusters
    beyond = _plateau_after(steps, one.bands(columns)[0] >= least, first)
    gain, deviation = one.deviations(columns)
    drawn = [_plateau_after(steps, pays, first) for pays in gain + deviation * of.t / of.normal >= least]
    tails = np.quantile(drawn, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], method="inverted_cdf")
    low, high = min(beyond, int(tails[0])), max(beyond, int(tails[1]))
    row |= {"beyond": beyond if beyond < last else None, "low": low, "high": high if high < last else None}
    row["said"] = _summary_sentence(row, unit, last)
    return row


def _plateau_after(steps: Floats, pays: NDArray[np.bool_], first: int) -> int:
    """The number of steps after the last one that pays; the first tried where none does."""
    return int(steps[pays.nonzero()[0][-1]]) + 1 if pays.any() else first


def _summary_sentence(row: Row, unit: str, last: int) -> str:
    gain = f"{row['least_gain']:.2g} {unit}"
    low, high = row["low"], row["high"]
    if low >= last:
        return f"one more step still gains {gain} at {last}, the most tried"
    ends = (
        f"{low}–{high}" if high is not None else f"{low} or more: even at {last}, the most tried, it cannot be excluded"
    )
    if row["beyond"] is None:
        return f"one more step seems to gain {gain} even at {last}, the most tried (beyond {low} it may not)"
    return f"beyond {row['beyond']} steps ({ends}) one more step gains less than {gain}"
