"""Which settings to use: the region of the best ones, the quickest in it, and the front of quality against time."""

from collections.abc import Mapping
from functools import partial
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
    tabulate_responses,
)
from flexy_assets.sweep.analysis.rows import (
    METRIC_LABELS,
    Floats,
    Row,
    float_column,
    join_notes,
    make_rows,
    normalize_weights,
)
from flexy_assets.sweep.analysis.schemas import PARETO_SCHEMA, SWEET_SPOTS_SCHEMA
from flexy_assets.sweep.analysis.times import fit_times

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

    `steps` and `guidance` are where the expectation is highest on a grid inside the range tried. The true best lies in
    the `region` 19 times in 20, whatever the noise: a setting is in it unless another is better beyond the bootstrap's
    largest studentised difference from those that are not clearly worse (a set inverted from tests of moment
    inequalities: Andrews and Soares 2010). "value" is the quickest setting whose expected loss of overall is at most
    `VALUE_TOLERANCE`; `loss`, `loss_high` and `seconds_share` compare it with the best, and on the other rows the
    quickest setting in the region. Without times steps stand in for seconds. A target without a significant response
    has no setting, and a `note`. Raises `BadInputError` for invalid weights. Returns `SWEET_SPOTS_SCHEMA`, six rows an
    engine.
    """
    shares = normalize_weights(weights)
    several = len(set(shares.values())) > 1
    terms = [f"{METRIC_LABELS[metric]}{f' × {share:.2g}' * several}" for metric, share in shares.items() if share]
    spots_of = partial(_find_spots, overall_note=f"over {', '.join(terms)}", seed=seed)
    return tabulate_responses(fit_responses(scores, regression, weights, seed), spots_of, SWEET_SPOTS_SCHEMA)


def find_pareto_front(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """Return the Pareto front of score and seconds, with each point's probability of being on it.

    `on_front` is the front of the expectation. Rows, by seconds, are the points of a coarse grid on the front now or in
    one refit in twenty. Returns `PARETO_SCHEMA`; a target without a front has one row whose `note` says why.
    """
    responses = fit_responses(scores, regression, weights, seed)
    return tabulate_responses(responses, partial(_find_front, seed=seed), PARETO_SCHEMA)


def find_best_region(response: FittedResponse, grid: Grid) -> NDArray[np.bool_]:
    """Return (a·b,) which grid settings with an image nearby are not significantly different from the best (95 %)."""
    assert response.fit is not None
    clusters = response.fit.sample.clusters
    supported = _find_supported(response, grid)
    expected, deviation = response.deviations(response.columns(grid.pairs))
    # Rivals are on every second line of the grid and at the expected best: neighbours carry the same information.
    a, b = len(grid.steps), len(grid.guidance)
    on_rival_lines = np.zeros((a, b), dtype=bool)
    on_rival_lines[np.ix_(_take_every_second(a), _take_every_second(b))] = True
    best = np.where(supported, expected, -np.inf).argmax()
    rivals = on_rival_lines.ravel() & supported
    rivals[best] = True
    level, margin = clusters.t / clusters.normal, np.sqrt(np.log(clusters.count))
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


def _find_spots(response: FittedResponse, overall_note: str, seed: int) -> list[Row]:
    """Return the rows of a target: of "overall" the second is that of "value"."""
    of_target = overall_note if response.target == "overall" else None
    shared: Row = {"n": response.rows.height, "flat_p": response.flat_p}
    spots = _find_best_and_value(response, seed) if response.moves else [({}, response.flat)] * 2
    best, value = (shared | spot | {"note": join_notes(of_target, note, response.note)} for spot, note in spots)
    return [best, value | {"target": "value"}] if of_target else [best]


def _find_best_and_value(response: FittedResponse, seed: int) -> list[tuple[Row, str | None]]:
    """Return the best setting and the quickest that is nearly as good, each with a note."""
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
    settings = make_rows({"steps": steps.astype(np.int64), "guidance": guidance if grid.guided else None})
    predictions = make_rows({"predicted": expected, "low": low, "high": high, "seconds": seconds})

    def find_quickest(among: NDArray[np.bool_]) -> int:
        """Return the cheapest of them; of equals the best."""
        return int(np.lexsort((-expected, np.where(among, cost, np.inf)))[0])

    def compare_with_best(index: int, tolerance: str = "") -> Row:
        """Return what a quicker setting saves and may lose; `tolerance` is what it is allowed to lose."""
        loss, _, most = response.bands((columns[best_index] - columns[index])[None, :])
        time_share = float(cost[index] / cost[best_index]) if cost[best_index] > 0 else None
        row: Row = {"loss": float(loss[0]), "loss_high": float(most[0]), "seconds_share": time_share}
        best, quick = (_format_setting(settings[place]) for place in (best_index, index))
        cost_name = "time" if time_model else "steps"
        return row | {"summary": _summary_sentence(response, best, quick, row, cost_name, tolerance)}

    extent: Row = {"steps_low": steps[in_region].min(), "steps_high": steps[in_region].max()}
    if grid.guided:
        extent |= {"guidance_low": guidance[in_region].min(), "guidance_high": guidance[in_region].max()}
    extent |= {"region_share": in_region.mean(), "region": [settings[i] for i in in_region.nonzero()[0]]}
    edges = [
        f"at the edge of the {name} tried"
        for name, axis in (("steps", steps), ("guidance", guidance))
        if axis.min() < axis.max() and axis[best_index] in (axis.min(), axis.max())
    ]
    if grid.guided and guidance[best_index] <= 1:
        edges.append("guidance of 1 or less is one setting: off")
    value_index = find_quickest(supported & (expected >= expected[best_index] - VALUE_TOLERANCE))
    best, value = (settings[place] | predictions[place] | extent for place in (best_index, value_index))
    best |= compare_with_best(find_quickest(in_region))
    value |= compare_with_best(value_index, f"within {VALUE_TOLERANCE} SD")
    return [(best, join_notes(*edges)), (value, None)]


def _summary_sentence(response: FittedResponse, best: str, quick: str, row: Row, cost: str, tolerance: str) -> str:
    unit = " SD" if response.target == "overall" else ""
    deviation = 1.0 if unit else float(np.std(float_column(response.rows, response.target)))
    loss, loss_high = (f"{max(row[name], 0):.2g}{unit}" for name in ("loss", "loss_high"))
    saving = "" if row["seconds_share"] is None else f", at {row['seconds_share']:.0%} of its {cost}"
    if best == quick:
        return f"no quicker setting {f'is expected {tolerance} of' if tolerance else 'is as good as'} {best}"
    if row["loss_high"] > MAX_LOSS * deviation:
        return f"too few images to compare {quick} with {best}: the loss may exceed {MAX_LOSS:g} SD"
    if tolerance:
        return f"{quick}: expected loss {loss} against {best} (95 %: at most {loss_high}){saving}"
    return f"{quick}: not significantly different from {best} (95 %: at most {loss_high} worse){saving}"


def _format_setting(setting: Row) -> str:
    return f"{setting['steps']} steps" + (f" at guidance {setting['guidance']:.1f}" if "guidance" in setting else "")


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
    drawn_seconds = time_model.predict_draws(steps, guidance) if time_model else np.tile(steps, (len(draws), 1))
    on_front = _find_undominated(expected[None, :], seconds[None, :])[0]
    front_probability = _find_undominated(draws, drawn_seconds).mean(axis=0)
    untimed_note = None if time_model else "no times are recorded: fewest steps count as quickest"
    note = join_notes(response.note, response.flat, untimed_note)
    order = np.lexsort((-expected, seconds))
    shown = order[(on_front | (front_probability >= MIN_FRONT_PROBABILITY))[order]]
    front = {"steps": steps, "guidance": guidance if grid.guided else None, "seconds": seconds if time_model else None}
    front |= {"predicted": expected, "low": low, "high": high}
    front |= {"on_front": on_front, "front_probability": front_probability}
    rows = make_rows({name: column if column is None else column[shown] for name, column in front.items()})
    return [row | {"note": note} for row in rows]


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
