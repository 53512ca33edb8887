"""Which settings to use: the region that holds the best ones, the quickest in it, and quality against seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets.sweep.analysis.clusters import CONFIDENCE_LEVEL
from flexy_assets.sweep.analysis.confidence_bands import FittedResponse, Grid, fit_responses, images_nearby, make_grid
from flexy_assets.sweep.analysis.rows import (
    TARGET_LABELS,
    Floats,
    Row,
    float_column,
    make_frame,
    normalize_weights,
    summary_columns,
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
    "said": pl.String(),
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
    "stays": pl.Float64(),
    "note": pl.String(),
}
VALUE_TOLERANCE: Final = 0.1
"""What the value setting may lose against the best, in standard deviations between images (a small effect
is 0.2 by Cohen's convention; half of it is hard to see)."""
MAX_LOSS: Final = 1.0
"""A setting that may lose so many standard deviations between images is no advice."""
FRONT_STEPS: Final = 12
FRONT_GUIDANCE: Final = 7
MIN_FRONT_PROBABILITY: Final = 0.05
"""Points on the front of fewer refits are not worth a row."""


def find_sweet_spots(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """The best settings for each metric, for the weighted mean of all ("overall") and for the time ("value").

    `steps` and `guidance` are where the expectation is highest on a grid inside the range tried; `region`
    lists the settings of that grid that cannot be told from the best at the 95 % level, `region_share` is
    their share of it, and low and high their extent. The true best lies in the region 19 times in 20,
    whatever the noise: each setting is kept unless some other is better beyond the bootstrap's largest
    studentised difference from those that are not plainly worse (a set inverted from tests of moment
    inequalities: Andrews and Soares 2010).
    "value" is the quickest setting that is expected to lose at most `VALUE_TOLERANCE` of overall; `loss` is that,
    `loss_high` the most it may be (95 %), `seconds_share` its share of the best's seconds. On the other rows
    these three are those of the quickest setting in the region. Without times steps stand
    in for seconds. A target that cannot be told from flat has no setting, and a `note`. Raises `BadInputError` for
    weights that cannot be. Returns `SPOTS`, six rows an engine.
    """
    shares = normalize_weights(weights or {})
    found = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        found += [{"engine": engine, **row} for row in _spots(targets, shares, seed)]
    return make_frame(found, SWEET_SPOTS_SCHEMA)


def find_pareto_front(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """Settings that no other beats in both score and seconds, and how often each stays so when images are resampled.

    `on_front` is the front of what is expected; `stays` the share of refits, 0 to 1, in which a point is on
    it. Rows, by seconds, are the points of a coarse grid that are on the front now or in one refit in twenty.
    Returns `PARETO`; a target without a front has one row whose `note` says why.
    """
    found = []
    for engine, targets in fit_responses(scores, regression, weights or {}, seed):
        for one in targets:
            found += [{"engine": engine, "target": one.target, **row} for row in _front(one, seed)]
    return make_frame(found, PARETO_SCHEMA)


def best_region(one: FittedResponse, here: Grid) -> NDArray[np.bool_]:
    """(a·b,) which settings of the grid that have an image near cannot be told from the best at the 95 % level."""
    assert one.sample is not None
    supported = _supported(one, here)
    expected, deviation = one.deviations(one.columns(here.pairs))
    # Rivals stand on every second line of the grid, and where the best is expected: neighbours tell the same.
    a, b = len(here.steps), len(here.guidance)
    lines = np.zeros((a, b), dtype=bool)
    lines[np.ix_(_every_second(a), _every_second(b))] = True
    best = np.where(supported, expected, -np.inf).argmax()
    rivals = lines.ravel() & supported
    rivals[best] = True
    level = one.sample.clusters.t / one.sample.clusters.normal
    slack = np.sqrt(np.log(one.sample.clusters.count))
    kept = supported.copy()
    for index in supported.nonzero()[0]:
        better = expected[rivals] - expected[index]
        apart = deviation[:, rivals] - deviation[:, [index]]
        error = np.sqrt((apart**2).mean(axis=0))
        other = error > 1e-9 * error.max()
        if not other.any():
            continue
        ahead = better[other] / error[other]
        # Rivals that are plainly behind cannot be what a test of this setting stumbles over.
        close = ahead >= min(-slack, ahead.max())
        largest = (apart[:, other][:, close] / error[other][close]).max(axis=1)
        kept[index] = ahead.max() <= level * np.quantile(largest, CONFIDENCE_LEVEL)
    kept[best] = True
    return kept


def _supported(one: FittedResponse, here: Grid) -> NDArray[np.bool_]:
    """(a·b,) which settings of the grid have an image near them: of the others a fit says what it likes."""
    steps, guidance = here.flat()
    return images_nearby(one.rows, steps, guidance if here.guided else None) > 0


def _every_second(count: int) -> list[int]:
    """Every second index and the last; all where there are few."""
    return sorted({*range(0, count, 2 if count > 4 else 1), count - 1})


def _spots(targets: list[FittedResponse], shares: Mapping[str, float], seed: int) -> list[Row]:
    found: list[Row] = []
    for one in targets:
        row: Row = {"target": one.target, "n": one.rows.height, "flat_p": one.flat_p}
        weighed = ""
        if one.target == "overall":
            weighed = "over " + ", ".join(
                f"{TARGET_LABELS[metric]}{f' × {share:.2g}' if len(set(shares.values())) > 1 else ''}"
                for metric, share in shares.items()
                if share
            )
        row["note"] = summary_columns(weighed, one.flat, one.note)
        value: Row = row | {"target": "value"}
        if one.moves:
            found_here, quickest = _best(one, seed)
            row |= found_here
            row["note"] = summary_columns(weighed, row.pop("edge"), one.note)
            value |= quickest
            value["note"] = summary_columns(weighed, one.note)
        found.append(row)
        if one.target == "overall":
            found.append(value)
    return found


def _best(one: FittedResponse, seed: int) -> tuple[Row, Row]:
    here = make_grid(one.rows)
    steps, guidance = here.flat()
    columns = one.columns(here.pairs)
    expected, low, high = one.bands(columns)
    tried_here = _supported(one, here)
    at = int(np.where(tried_here, expected, -np.inf).argmax())
    kept = best_region(one, here)
    kept[at] = True
    clock = fit_times(one.rows, seed)
    seconds = clock.at(steps, guidance) if clock else None
    cost = steps if seconds is None else seconds

    def quickest(among: NDArray[np.bool_]) -> int:
        """The cheapest of them; of equals the best."""
        return int(np.lexsort((-expected, np.where(among, cost, np.inf)))[0])

    def against_the_best(index: int) -> Row:
        loss, _, most = one.bands((columns[at] - columns[index])[None, :])
        share = float(cost[index] / cost[at]) if cost[at] > 0 else None
        return {"loss": float(loss[0]), "loss_high": float(most[0]), "seconds_share": share}

    def spot(index: int) -> Row:
        return {
            "steps": int(steps[index]),
            "guidance": float(guidance[index]) if here.guided else None,
            "predicted": float(expected[index]),
            "low": float(low[index]),
            "high": float(high[index]),
            "seconds": None if seconds is None else float(seconds[index]),
        }

    extent: Row = {
        "steps_low": int(steps[kept].min()),
        "steps_high": int(steps[kept].max()),
        "guidance_low": float(guidance[kept].min()) if here.guided else None,
        "guidance_high": float(guidance[kept].max()) if here.guided else None,
        "region_share": float(kept.mean()),
        "region": [
            {"steps": int(s), "guidance": float(g) if here.guided else None}
            for s, g in zip(steps[kept], guidance[kept], strict=True)
        ],
    }
    edges = [
        f"at the edge of the {name} tried"
        for name, axis in (("steps", steps), ("guidance", guidance))
        if axis.min() < axis.max() and axis[at] in (axis.min(), axis.max())
    ]
    if here.guided and guidance[at] <= 1:
        edges.append("guidance of 1 and less is one setting: off")
    cheap = quickest(kept)
    found = spot(at)
    best = found | extent | against_the_best(cheap) | {"edge": summary_columns(*edges)}
    quick = quickest(tried_here & (expected >= expected[at] - VALUE_TOLERANCE))
    value = spot(quick) | extent | against_the_best(quick)
    best["said"] = _summary_sentence(one, found, spot(cheap), best, "time" if clock else "steps")
    value["said"] = _summary_sentence(
        one, found, spot(quick), value, "time" if clock else "steps", f"within {VALUE_TOLERANCE} SD"
    )
    return best, value


def _summary_sentence(one: FittedResponse, best: Row, quick: Row, row: Row, cost: str, near: str = "") -> str:
    """What a quicker setting saves against the best and may lose, in words; `near` where it need only be near."""
    unit = " SD" if one.target == "overall" else ""
    spread = 1.0 if unit else float(np.std(float_column(one.rows, one.target)))
    first, second = _setting(best), _setting(quick)
    loss, most = (f"{max(row[name], 0):.2g}{unit}" for name in ("loss", "loss_high"))
    takes = "" if row["seconds_share"] is None else f"takes {row['seconds_share']:.0%} of its {cost}"
    if first == second:
        return f"nothing quicker {f'is expected {near} of' if near else 'is as good as'} {first}"
    if row["loss_high"] > MAX_LOSS * spread:
        return (
            f"too few images to say whether {second} is as good as {first}: it may be more than {MAX_LOSS:g} SD worse"
        )
    if near:
        return f"{second} is expected to be {loss} worse than {first} (at most {most}){takes and f' and {takes}'}"
    return f"these images cannot tell {first} from {second}, which {takes and f'{takes} but '}may be up to {most} worse"


def _setting(row: Row) -> str:
    return f"{row['steps']} steps" + ("" if row["guidance"] is None else f" at guidance {row['guidance']:.1f}")


def _front(one: FittedResponse, seed: int) -> list[Row]:
    if one.fit is None:
        return [{"note": one.note}]
    clock = fit_times(one.rows, seed)
    here = make_grid(one.rows)
    thin = Grid(_thinned(here.steps, FRONT_STEPS), _thinned(here.guidance, FRONT_GUIDANCE), here.guided)
    steps, guidance = thin.flat()
    columns = one.columns(thin.pairs)
    expected, low, high = one.bands(columns)
    drawn = expected + one.deviations(columns)[1]
    seconds = clock.at(steps, guidance) if clock else steps
    now = _undominated(expected[None, :], seconds[None, :])[0]
    stays = _undominated(drawn, clock.draws_at(steps, guidance) if clock else np.tile(steps, (len(drawn), 1))).mean(
        axis=0
    )
    order = np.lexsort((-expected, seconds))
    note = summary_columns(
        one.note,
        one.flat,
        None if clock else "no image was timed: fewest steps count as quickest",
    )
    return [
        {
            "steps": int(steps[index]),
            "guidance": float(guidance[index]) if here.guided else None,
            "seconds": float(seconds[index]) if clock else None,
            "predicted": float(expected[index]),
            "low": float(low[index]),
            "high": float(high[index]),
            "on_front": bool(now[index]),
            "stays": float(stays[index]),
            "note": note,
        }
        for index in order
        if now[index] or stays[index] >= MIN_FRONT_PROBABILITY
    ]


def _thinned(values: Floats, most: int) -> Floats:
    return values[np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def _undominated(quality: Floats, seconds: Floats) -> NDArray[np.bool_]:
    """(draws, m) which points no other one of the draw beats in quality at no more seconds."""
    order = np.lexsort((-quality, seconds), axis=-1)
    sorted_quality = np.take_along_axis(quality, order, axis=1)
    best_so_far = np.maximum.accumulate(sorted_quality, axis=1)
    first = np.ones_like(sorted_quality, dtype=bool)
    first[:, 1:] = sorted_quality[:, 1:] > best_so_far[:, :-1]
    on = np.empty_like(first)
    np.put_along_axis(on, order, first, axis=1)
    return on
