"""Which settings to use: the region of the best ones, the quickest in it, and the front of quality against time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets.sweep.analysis.clusters import CONFIDENCE_LEVEL
from flexy_assets.sweep.analysis.confidence_bands import (
    FittedResponse,
    Grid,
    count_images_nearby,
    fit_responses,
    make_grid,
)
from flexy_assets.sweep.analysis.rows import (
    TARGET_LABELS,
    Floats,
    Row,
    float_column,
    join_notes,
    make_frame,
    normalize_weights,
)
from flexy_assets.sweep.analysis.times import fit_times

SWEET_SPOTS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "target": pl.String(),
    "n": pl.Int64(),
    "steps": pl.Int64(),
    "guidance": pl.Float64(),
    "predicted": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "seconds": pl.Float64(),
    "steps_low": pl.Int64(),
    "steps_high": pl.Int64(),
    "guidance_low": pl.Float64(),
    "guidance_high": pl.Float64(),
    "region_share": pl.Float64(),
    "region": pl.List(pl.Struct({"steps": pl.Int64(), "guidance": pl.Float64()})),
    "flat_p": pl.Float64(),
    "seconds_share": pl.Float64(),
    "loss": pl.Float64(),
    "loss_high": pl.Float64(),
    "summary": pl.String(),
    "note": pl.String(),
}
PARETO_SCHEMA: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "target": pl.String(),
    "steps": pl.Int64(),
    "guidance": pl.Float64(),
    "seconds": pl.Float64(),
    "predicted": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "on_front": pl.Boolean(),
    "front_probability": pl.Float64(),
    "note": pl.String(),
}
VALUE_TOLERANCE: Final = 0.1
"""The loss allowed for the value setting, in standard deviations between images (Cohen's small effect is 0.2)."""
MAX_LOSS: Final = 1.0
"""A setting that may lose more standard deviations between images is not recommended."""
FRONT_STEPS: Final = 12
FRONT_GUIDANCE: Final = 7
MIN_FRONT_PROBABILITY: Final = 0.05
"""Points on the front in fewer refits get no row."""


def find_sweet_spots(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """Return the best settings for each metric, for the weighted mean of all ("overall") and for the time ("value").

    `steps` and `guidance` are where the expectation is highest on a grid inside the range tried; `region`
    lists the settings of that grid not significantly different from the best (95 %), `region_share` is
    their share of it, and low and high their extent. The true best lies in the region 19 times in 20,
    whatever the noise: a setting is in it unless another is better beyond the bootstrap's largest
    studentised difference from those that are not clearly worse (a set inverted from tests of moment
    inequalities: Andrews and Soares 2010).
    "value" is the quickest setting whose expected loss of overall is at most `VALUE_TOLERANCE`; `loss` is that,
    `loss_high` its upper end (95 %), `seconds_share` its share of the best's seconds. On the other rows
    these three are those of the quickest setting in the region. Without times steps stand
    in for seconds. A target without a significant response has no setting, and a `note`. Raises `BadInputError` for
    invalid weights. Returns `SWEET_SPOTS_SCHEMA`, six rows an engine.
    """
    shares = normalize_weights(weights or {})
    rows = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        rows += [{"engine": engine, **row} for row in _find_spots(targets, shares, seed)]
    return make_frame(rows, SWEET_SPOTS_SCHEMA)


def find_pareto_front(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """Return the Pareto front of score and seconds, with each point's probability of being on it.

    `on_front` is the front of the expectation; `front_probability` the share of bootstrap refits, 0 to 1, in which a
    point is on it. Rows, by seconds, are the points of a coarse grid on the front now or in one refit in twenty.
    Returns `PARETO_SCHEMA`; a target without a front has one row whose `note` says why.
    """
    rows = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        for response in targets:
            rows += [{"engine": engine, "target": response.target, **row} for row in _find_front(response, seed)]
    return make_frame(rows, PARETO_SCHEMA)


def find_best_region(response: FittedResponse, grid: Grid) -> NDArray[np.bool_]:
    """Return (a·b,) which grid settings with an image nearby are not significantly different from the best (95 %)."""
    assert response.sample is not None
    supported = _find_supported(response, grid)
    expected, deviation = response.deviations(response.columns(grid.pairs))
    # Rivals are on every second line of the grid and at the expected best: neighbours carry the same information.
    a, b = len(grid.steps), len(grid.guidance)
    on_rival_lines = np.zeros((a, b), dtype=bool)
    on_rival_lines[np.ix_(_take_every_second(a), _take_every_second(b))] = True
    best = np.where(supported, expected, -np.inf).argmax()
    rivals = on_rival_lines.ravel() & supported
    rivals[best] = True
    level = response.sample.clusters.t / response.sample.clusters.normal
    margin = np.sqrt(np.log(response.sample.clusters.count))
    in_region = supported.copy()
    for index in supported.nonzero()[0]:
        advantage = expected[rivals] - expected[index]
        difference_draws = deviation[:, rivals] - deviation[:, [index]]
        error = np.sqrt((difference_draws**2).mean(axis=0))
        distinct = error > 1e-9 * error.max()
        if not distinct.any():
            continue
        studentized = advantage[distinct] / error[distinct]
        # Rivals that are clearly worse cannot decide the test of this setting.
        close = studentized >= min(-margin, studentized.max())
        largest = (difference_draws[:, distinct][:, close] / error[distinct][close]).max(axis=1)
        in_region[index] = studentized.max() <= level * np.quantile(largest, CONFIDENCE_LEVEL)
    in_region[best] = True
    return in_region


def _find_supported(response: FittedResponse, grid: Grid) -> NDArray[np.bool_]:
    """Return (a·b,) which grid settings have an image nearby: elsewhere a fit is an extrapolation."""
    steps, guidance = grid.flat()
    return count_images_nearby(response.rows, steps, guidance if grid.guided else None) > 0


def _take_every_second(count: int) -> list[int]:
    """Return every second index and the last; all of up to four."""
    return sorted({*range(0, count, 2 if count > 4 else 1), count - 1})


def _find_spots(targets: list[FittedResponse], shares: Mapping[str, float], seed: int) -> list[Row]:
    rows: list[Row] = []
    for response in targets:
        row: Row = {"target": response.target, "n": response.rows.height, "flat_p": response.flat_p}
        weights_note = ""
        if response.target == "overall":
            weights_note = "over " + ", ".join(
                f"{TARGET_LABELS[metric]}{f' × {share:.2g}' if len(set(shares.values())) > 1 else ''}"
                for metric, share in shares.items()
                if share
            )
        row["note"] = join_notes(weights_note, response.flat, response.note)
        value: Row = row | {"target": "value"}
        if response.moves:
            best_row, quickest = _find_best_and_value(response, seed)
            row |= best_row
            row["note"] = join_notes(weights_note, row.pop("edge"), response.note)
            value |= quickest
            value["note"] = join_notes(weights_note, response.note)
        rows.append(row)
        if response.target == "overall":
            rows.append(value)
    return rows


def _find_best_and_value(response: FittedResponse, seed: int) -> tuple[Row, Row]:
    grid = make_grid(response.rows)
    steps, guidance = grid.flat()
    columns = response.columns(grid.pairs)
    expected, low, high = response.bands(columns)
    supported = _find_supported(response, grid)
    best_index = int(np.where(supported, expected, -np.inf).argmax())
    in_region = find_best_region(response, grid)
    in_region[best_index] = True
    time_model = fit_times(response.rows, seed)
    seconds = time_model.predict(steps, guidance) if time_model else None
    cost = steps if seconds is None else seconds

    def find_quickest(among: NDArray[np.bool_]) -> int:
        """Return the cheapest of them; of equals the best."""
        return int(np.lexsort((-expected, np.where(among, cost, np.inf)))[0])

    def compare_with_best(index: int) -> Row:
        loss, _, most = response.bands((columns[best_index] - columns[index])[None, :])
        time_share = float(cost[index] / cost[best_index]) if cost[best_index] > 0 else None
        return {"loss": float(loss[0]), "loss_high": float(most[0]), "seconds_share": time_share}

    def describe_setting(index: int) -> Row:
        return {
            "steps": int(steps[index]),
            "guidance": float(guidance[index]) if grid.guided else None,
            "predicted": float(expected[index]),
            "low": float(low[index]),
            "high": float(high[index]),
            "seconds": None if seconds is None else float(seconds[index]),
        }

    extent: Row = {
        "steps_low": int(steps[in_region].min()),
        "steps_high": int(steps[in_region].max()),
        "guidance_low": float(guidance[in_region].min()) if grid.guided else None,
        "guidance_high": float(guidance[in_region].max()) if grid.guided else None,
        "region_share": float(in_region.mean()),
        "region": [
            {"steps": int(s), "guidance": float(g) if grid.guided else None}
            for s, g in zip(steps[in_region], guidance[in_region], strict=True)
        ],
    }
    edges = [
        f"at the edge of the {name} tried"
        for name, axis in (("steps", steps), ("guidance", guidance))
        if axis.min() < axis.max() and axis[best_index] in (axis.min(), axis.max())
    ]
    if grid.guided and guidance[best_index] <= 1:
        edges.append("guidance of 1 or less is one setting: off")
    quickest_index = find_quickest(in_region)
    best_spot = describe_setting(best_index)
    best = best_spot | extent | compare_with_best(quickest_index) | {"edge": join_notes(*edges)}
    value_index = find_quickest(supported & (expected >= expected[best_index] - VALUE_TOLERANCE))
    value = describe_setting(value_index) | extent | compare_with_best(value_index)
    best["summary"] = _summary_sentence(
        response, best_spot, describe_setting(quickest_index), best, "time" if time_model else "steps"
    )
    value["summary"] = _summary_sentence(
        response,
        best_spot,
        describe_setting(value_index),
        value,
        "time" if time_model else "steps",
        f"within {VALUE_TOLERANCE} SD",
    )
    return best, value


def _summary_sentence(response: FittedResponse, best: Row, quick: Row, row: Row, cost: str, tolerance: str = "") -> str:
    """Return what a quicker setting saves against the best and may lose; `tolerance` is what it is allowed to lose."""
    unit = " SD" if response.target == "overall" else ""
    deviation = 1.0 if unit else float(np.std(float_column(response.rows, response.target)))
    best_setting, quick_setting = _format_setting(best), _format_setting(quick)
    loss, loss_high = (f"{max(row[name], 0):.2g}{unit}" for name in ("loss", "loss_high"))
    saving = "" if row["seconds_share"] is None else f", at {row['seconds_share']:.0%} of its {cost}"
    if best_setting == quick_setting:
        return f"no quicker setting {f'is expected {tolerance} of' if tolerance else 'is as good as'} {best_setting}"
    if row["loss_high"] > MAX_LOSS * deviation:
        return f"too few images to compare {quick_setting} with {best_setting}: the loss may exceed {MAX_LOSS:g} SD"
    if tolerance:
        return f"{quick_setting}: expected loss {loss} against {best_setting} (95 %: at most {loss_high}){saving}"
    return f"{quick_setting}: not significantly different from {best_setting} (95 %: at most {loss_high} worse){saving}"


def _format_setting(row: Row) -> str:
    return f"{row['steps']} steps" + ("" if row["guidance"] is None else f" at guidance {row['guidance']:.1f}")


def _find_front(response: FittedResponse, seed: int) -> list[Row]:
    if response.fit is None:
        return [{"note": response.note}]
    time_model = fit_times(response.rows, seed)
    grid = make_grid(response.rows)
    coarse_grid = Grid(_take_evenly(grid.steps, FRONT_STEPS), _take_evenly(grid.guidance, FRONT_GUIDANCE), grid.guided)
    steps, guidance = coarse_grid.flat()
    columns = response.columns(coarse_grid.pairs)
    expected, low, high = response.bands(columns)
    draws = expected + response.deviations(columns)[1]
    seconds = time_model.predict(steps, guidance) if time_model else steps
    on_front = _find_undominated(expected[None, :], seconds[None, :])[0]
    front_probability = _find_undominated(
        draws, time_model.predict_draws(steps, guidance) if time_model else np.tile(steps, (len(draws), 1))
    ).mean(axis=0)
    order = np.lexsort((-expected, seconds))
    note = join_notes(
        response.note,
        response.flat,
        None if time_model else "no times are recorded: fewest steps count as quickest",
    )
    return [
        {
            "steps": int(steps[index]),
            "guidance": float(guidance[index]) if grid.guided else None,
            "seconds": float(seconds[index]) if time_model else None,
            "predicted": float(expected[index]),
            "low": float(low[index]),
            "high": float(high[index]),
            "on_front": bool(on_front[index]),
            "front_probability": float(front_probability[index]),
            "note": note,
        }
        for index in order
        if on_front[index] or front_probability[index] >= MIN_FRONT_PROBABILITY
    ]


def _take_evenly(values: Floats, most: int) -> Floats:
    return values[np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def _find_undominated(quality: Floats, seconds: Floats) -> NDArray[np.bool_]:
    """Return (draws, m) which points no other of the draw beats in quality at no more seconds."""
    order = np.lexsort((-quality, seconds), axis=-1)
    sorted_quality = np.take_along_axis(quality, order, axis=1)
    best_so_far = np.maximum.accumulate(sorted_quality, axis=1)
    is_first = np.ones_like(sorted_quality, dtype=bool)
    is_first[:, 1:] = sorted_quality[:, 1:] > best_so_far[:, :-1]
    undominated = np.empty_like(is_first)
    np.put_along_axis(undominated, order, is_first, axis=1)
    return undominated
