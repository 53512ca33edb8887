"""Which settings to use: the quickest as good as the best, the best, the region around, and quality against time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets.storage.scores import LABEL_MARK
from flexy_assets.sweep.analysis.response_model import (
    FLAT_LEVEL,
    FittedResponse,
    Grid,
    count_images_nearby,
    make_grid,
    tabulate_responses,
)
from flexy_assets.sweep.analysis.rows import Floats, Row, join_notes, make_rows
from flexy_assets.sweep.analysis.schemas import PARETO_SCHEMA, SWEET_SPOTS_SCHEMA
from flexy_assets.sweep.analysis.times import TimeModel, fit_times
from resources.models.registry import MODELS

Limits = Mapping[str, tuple[float, float]]
"""The lowest and the highest `steps` and `guidance` that an engine may be used at; no limit where one is absent."""
Bools = NDArray[np.bool_]

VALUE_TOLERANCE: Final = 0.1
"""The loss allowed for the lead setting, in standard deviations between images (Cohen's small effect is 0.2)."""
MIN_ADVICE_IMAGES: Final = 40
MIN_ADVICE_PROMPTS: Final = 3
MIN_NEARBY_IMAGES: Final = 5
MAX_REGION_SHARE: Final = 0.5
"""No setting is named from fewer images, prompts or images nearby, nor where the best may lie in more of the plane."""
FRONT_STEPS: Final = 12
FRONT_GUIDANCE: Final = 7
MIN_FRONT_PROBABILITY: Final = 0.05
"""Points on the front in fewer refits get no row."""


@dataclass(frozen=True)
class Advice:
    """What is advised on a grid of m settings: the indices of `lead` and `best`, and `region` (m,) around the best.

    `lead_optimism` and `best_optimism` are what the response promises too much there, because they were selected by it.
    `reason` says why no setting is named; the others are then undefined.
    """

    lead: int = 0
    best: int = 0
    region: Bools | None = None
    reason: str | None = None
    lead_optimism: float = 0.0
    best_optimism: float = 0.0


@dataclass(frozen=True)
class SelectionRule:
    """How best, region and lead follow from the expectation (m,) on a grid of m settings.

    `margins` (m,) are those of its band, `difference_margins` (m, m) of one setting's less another's. The region is
    among the settings that are `known` of those `allowed`, best and lead among those with images `near` them.
    """

    margins: Floats
    difference_margins: Floats
    allowed: Bools
    known: Bools
    near: Bools
    cost: Floats
    tolerance: float

    def select(self, expected: Floats) -> tuple[int, int, Bools, float]:
        """Return the indices of lead and best, the region (m,), and the share of the plane that the best may lie in."""
        low = expected - self.margins
        best = int(np.where(self.near, low, -np.inf).argmax())
        region = self.known & (expected[best] - expected <= self.difference_margins[best])
        among = region & self.near & (low >= low[best] - self.tolerance)
        # Of equal costs the one with the highest low end.
        lead = int(np.lexsort((-low, np.where(among, self.cost, np.inf)))[0])
        return lead, best, region, float((region | (self.allowed & ~self.known)).sum() / self.allowed.sum())

    def optimism(self, expected: Floats, refits: Floats) -> list[float]:
        """Return what lead and best promise too much: Efron's (1983) bootstrap estimate of the optimism.

        Each refit, whose difference from the expectation is a row of `refits` (draws, m), selects its own lead and
        best; the optimism is the mean of what it promises there beyond the expectation, over those that name a setting.
        """
        selected = [self.select(expected + refit) for refit in refits]
        named = np.array([share <= MAX_REGION_SHARE for *_, share in selected])
        excess = np.take_along_axis(refits, np.array([each[:2] for each in selected]), axis=1)
        return (excess[named] if named.any() else excess).mean(axis=0).clip(0).tolist()


def find_sweet_spots(responses: Iterable[FittedResponse], seed: int = 0) -> pl.DataFrame:
    """Return the best settings for each metric and for the weighted mean of all ("overall"), and the lead ("value").

    The best is where the low end of the band is highest, on a grid inside the range tried and the engine's `limits`.
    The `region` are the settings that are not significantly worse (95 %), without isolated ones; `steps_low` to
    `steps_high` at `guidance_low` to `guidance_high` is its largest rectangle around the row's setting. "value" is the
    lead: the quickest setting in the region of overall whose low end is within `VALUE_TOLERANCE` standard deviations
    of the best's. A setting that is the highest of many estimates promises too much: `predicted` is the response there
    less its `optimism`, and `low` reaches down by as much. `loss`, `loss_high` and `seconds_share` compare a target's
    lead with its best. Without times steps stand in for seconds. Where the images cannot carry an answer there is no
    setting, and a `reason`. Returns `SWEET_SPOTS_SCHEMA`, six rows an engine.
    """
    return tabulate_responses(responses, partial(_find_spots, seed=seed), SWEET_SPOTS_SCHEMA)


def find_pareto_front(responses: Iterable[FittedResponse], seed: int = 0) -> pl.DataFrame:
    """Return the Pareto front of score and seconds, with each point's probability of being on it.

    `on_front` is the front of the expectation. Rows, by seconds, are the points of a coarse grid on the front now or in
    one refit in twenty. Returns `PARETO_SCHEMA`; a target without a front has one row whose `note` says why.
    """
    return tabulate_responses(responses, partial(_find_front, seed=seed), PARETO_SCHEMA)


def describe_advice(spots: pl.DataFrame) -> dict[str, Row]:
    """Return the overall advice on each engine: `lead`, `best`, `region`, `images`, and `reason` where none is named.

    A setting has `steps`, `guidance`, `predicted`, `low`, `high` and `seconds`; the region the `steps` and `guidance`
    that hold for it (lowest and highest), and its `share` of what was tried.
    """
    advice: dict[str, Row] = {}
    for engine in spots["engine"].unique(maintain_order=True):
        rows = {row["target"]: row for row in spots.filter(engine=engine).iter_rows(named=True)}
        lead, best = (
            {name: rows[target][name] for name in ("steps", "guidance", "predicted", "low", "high", "seconds")}
            for target in ("value", "overall")
        )
        row = rows["value"]
        region = {name: [row[f"{name}_low"], row[f"{name}_high"]] for name in ("steps", "guidance")}
        named = row["steps"] is not None
        advice[engine] = {
            "lead": lead if named else None,
            "best": best if named else None,
            "region": region | {"share": row["region_share"]} if named else None,
            "images": row["n"],
            "reason": row["reason"],
        }
    return advice


def find_limits(engine: str) -> Limits:
    """Return what the registry says of an engine, labelled or not."""
    entry = MODELS.get(engine.partition(LABEL_MARK)[0])
    bounds = {"steps": entry.steps_range, "guidance": entry.guidance_range} if entry else {}
    return {name: values for name, values in bounds.items() if values}


def advise(response: FittedResponse, grid: Grid, columns: Floats, cost: Floats, limits: Limits) -> Advice:
    """Return the advice on a fitted response; `columns` (m, p) and `cost` (m,) are those of the grid's settings."""
    prompts = int(response.sample.clusters.prompts.max()) + 1
    if response.rows.height < MIN_ADVICE_IMAGES:
        return Advice(reason=f"too few images ({response.rows.height}; {MIN_ADVICE_IMAGES} needed)")
    if prompts < MIN_ADVICE_PROMPTS:
        return Advice(reason=f"too few prompts ({prompts}; {MIN_ADVICE_PROMPTS} needed)")
    if response.flat:
        return Advice(reason=response.flat)
    steps, guidance = grid.flat()
    nearby = count_images_nearby(response.rows, steps, guidance if grid.guided else None)
    allowed = _find_allowed(grid, limits)
    known, near = allowed & (nearby > 0), allowed & (nearby >= MIN_NEARBY_IMAGES)
    if not near.any():
        where = "any setting" if allowed.all() else "any setting that the engine may be used at"
        return Advice(reason=f"too few images near {where}")
    expected, deviations = response.deviations(columns)
    covariance = deviations.T @ deviations / len(deviations)
    variances = np.diag(covariance)
    differences = np.maximum(variances[:, None] + variances - 2 * covariance, 0)
    t, tolerance = response.sample.clusters.t, VALUE_TOLERANCE * response.deviation
    rule = SelectionRule(t * np.sqrt(variances), t * np.sqrt(differences), allowed, known, near, cost, tolerance)
    lead, best, region, share = rule.select(expected)
    if share > MAX_REGION_SHARE:
        return Advice(
            reason=f"the images hardly tell settings apart: the best may lie in {share:.0%} of what was tried"
        )
    edge = _find_open_edge(grid, best, limits)
    if edge and response.bend_p >= FLAT_LEVEL:
        reason = f"the scores rise to the edge of the {edge} tried without a bend: the best may lie beyond it"
        return Advice(reason=reason)
    optimism = rule.optimism(expected, (response.refits - response.coefficients) @ columns.T)
    region &= _has_neighbour(region, grid)
    region[[lead, best]] = True
    return Advice(lead, best, region, None, *optimism)


def _find_allowed(grid: Grid, limits: Limits) -> Bools:
    """Return (m,) which settings of a grid the engine may be used at."""
    allowed = np.ones(len(grid.steps) * len(grid.guidance), dtype=bool)
    for name, values in zip(("steps", "guidance"), grid.flat(), strict=True):
        low, high = limits.get(name, (-np.inf, np.inf))
        allowed &= (values >= low) & (values <= high)
    return allowed


def _find_open_edge(grid: Grid, best: int, limits: Limits) -> str | None:
    """Return the setting at whose edge of the range tried the best lies, where the engine may be used beyond it."""
    for name, values in zip(("steps", "guidance"), grid.flat(), strict=True):
        lowest, highest = limits.get(name, (1.0, np.inf))
        low, high, value = values.min(), values.max(), values[best]
        if low < high and (value == high < highest or value == low > max(lowest, 1)):
            return name
    return None


def _has_neighbour(region: Bools, grid: Grid) -> Bools:
    """Return (m,) whether one of the eight settings around each one is in the region."""
    padded = np.pad(region.reshape(len(grid.steps), len(grid.guidance)).astype(int), 1)
    around = sum(np.roll(padded, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) - padded
    return np.asarray(around[1:-1, 1:-1].ravel() > 0)


def _find_rectangle(region: Bools, grid: Grid, index: int) -> Row:
    """Return the ranges of the largest rectangle inside the region that contains the setting of the index."""
    inside: Bools = region.reshape(len(grid.steps), len(grid.guidance))
    row, column = divmod(index, len(grid.guidance))
    best, size = (row, row, column, column), 0
    for top in range(row + 1):
        for bottom in range(row, len(grid.steps)):
            filled: Bools = np.logical_and.reduce(inside[top : bottom + 1])
            if not filled[column]:
                continue
            left = column - int(np.append(~filled[:column][::-1], True).argmax())
            right = column + int(np.append(~filled[column + 1 :], True).argmax())
            if (area := (bottom - top + 1) * (right - left + 1)) > size:
                best, size = (top, bottom, left, right), area
    top, bottom, left, right = best
    ranges: Row = {"steps_low": int(grid.steps[top]), "steps_high": int(grid.steps[bottom])}
    if grid.guided:
        ranges |= {"guidance_low": grid.guidance[left], "guidance_high": grid.guidance[right]}
    return ranges


def _find_spots(response: FittedResponse, seed: int) -> list[Row]:
    """Return the rows of a target: of "overall" the second is that of "value"."""
    shared: Row = {"n": response.rows.height, "flat_p": response.flat_p, "note": response.note}
    rows = [shared | row for row in _find_best_and_lead(response, find_limits(response.engine), seed)]
    return [rows[0], rows[1] | {"target": "value"}] if response.target == "overall" else rows[:1]


def _find_best_and_lead(response: FittedResponse, limits: Limits, seed: int) -> list[Row]:
    if not response.models:
        return [{"reason": response.unfitted}] * 2
    grid, time_model = make_grid(response.rows), fit_times(response.rows, seed)
    steps, guidance = grid.flat()
    columns = response.columns(grid.pairs)
    cost = time_model.predict(steps, guidance) if time_model else steps
    advice = advise(response, grid, columns, cost, limits)
    if advice.region is None:
        return [{"reason": advice.reason, "note": join_notes(advice.reason, response.note)}] * 2
    expected, low, high = response.bands(columns)
    optimism = np.zeros(len(expected))
    # Where both are one setting, it promises what the more optimistic choice does.
    optimism[advice.lead] = advice.lead_optimism
    optimism[advice.best] = max(advice.best_optimism, optimism[advice.best])
    seconds = cost if time_model else None
    settings = make_rows({"steps": steps.astype(np.int64), "guidance": guidance if grid.guided else None})
    promised: dict[str, Floats | None] = {"predicted": expected - optimism, "low": low - optimism, "high": high}
    predictions = make_rows(promised | {"optimism": optimism, "seconds": seconds})
    share = float(advice.region.sum() / _find_allowed(grid, limits).sum())
    region: Row = {"region_share": share, "region": [settings[i] for i in advice.region.nonzero()[0]]}
    best, lead = (
        settings[index] | predictions[index] | region | _find_rectangle(advice.region, grid, index)
        for index in (advice.best, advice.lead)
    )
    _, _, (loss_high,) = response.bands((columns[advice.best] - columns[advice.lead])[None, :])
    loss = best["predicted"] - lead["predicted"]
    compared: Row = {"loss": loss, "loss_high": max(float(loss_high), loss)}
    if best["steps"] and cost[advice.best] > 0:
        compared["seconds_share"] = float(cost[advice.lead] / cost[advice.best])
    compared["summary"] = _summary_sentence(response, best, lead, compared, time_model)
    edges = [
        f"at the edge of the {name} tried"
        for name, axis in (("steps", steps), ("guidance", guidance))
        if axis.min() < axis.max() and axis[advice.best] in (axis.min(), axis.max())
    ]
    if grid.guided and guidance[advice.best] <= 1:
        edges.append("guidance of 1 or less is one setting: off")
    top = int(low.argmax())
    if not _find_allowed(grid, limits)[top]:
        edges.append(f"outside the engine's range {_format_setting(settings[top])} may be better")
    note = join_notes(*edges, response.note)
    return [best | compared | {"note": note}, lead | compared]


def _summary_sentence(
    response: FittedResponse, best: Row, lead: Row, compared: Row, time_model: TimeModel | None
) -> str:
    unit = " SD" if response.target == "overall" else ""
    loss, loss_high = (f"{max(compared[name], 0):.2g}{unit}" for name in ("loss", "loss_high"))
    quick, slow = _format_setting(lead), _format_setting(best)
    if quick == slow:
        return f"no quicker setting is as good as {slow}"
    share = compared.get("seconds_share")
    saving = "" if share is None else f", at {share:.0%} of its {'time' if time_model else 'steps'}"
    return f"{quick}: expected loss {loss} against {slow} (95 %: at most {loss_high}){saving}"


def _format_setting(setting: Row) -> str:
    return f"{setting['steps']} steps" + (f" at guidance {setting['guidance']:.1f}" if "guidance" in setting else "")


def _find_front(response: FittedResponse, seed: int) -> list[Row]:
    if not response.models:
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
