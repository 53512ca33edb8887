"""Engines, runs and prompts side by side: as they are, and at the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import polars as pl

from flexy_assets.sweep.analysis.basis_functions import to_coordinates
from flexy_assets.sweep.analysis.clusters import find_clusters
from flexy_assets.sweep.analysis.confidence_bands import FittedResponse, fit_responses
from flexy_assets.sweep.analysis.rows import (
    Floats,
    Row,
    effective_guidance,
    float_column,
    make_frame,
    measured_images,
    split_by_engine,
    summary_columns,
    tried_images,
)

SWEEP_COMPARISON_SCHEMA: Final[dict[str, pl.DataType]] = {
    "by": pl.String(),
    "engine": pl.String(),
    "name": pl.String(),
    "target": pl.String(),
    "n": pl.Int64(),
    "mean": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "adjusted": pl.Float64(),
    "adjusted_low": pl.Float64(),
    "adjusted_high": pl.Float64(),
    "seconds": pl.Float64(),
    "steps_from": pl.Int64(),
    "steps_to": pl.Int64(),
    "guidance_from": pl.Float64(),
    "guidance_to": pl.Float64(),
    "note": pl.String(),
}
MAX_NAMES: Final = 200
"""Runs or prompts of an engine that are compared: those with the most images."""
MIN_SHARED: Final = 15
"""Values of a setting, in each direction, over which engines are averaged."""


def compare_groups(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """Each engine's, run's and prompt's mean of every target, as it is and at the same settings as the others.

    `adjusted` is, for an engine, its surface averaged over the steps and guidance that all engines were tried at
    (`steps_from` to `guidance_to`); for a run or prompt, its mean after what its settings alone explain is
    taken out. Z-scores make "overall" comparable within an engine only. 95 % intervals resample prompts where
    six or more repeat, else images. At most `MOST_NAMES` runs and prompts an engine. Returns `COMPARISON`.
    """
    found: list[Row] = []
    all_fitted = list(fit_responses(scores, regression, weights or {}, seed))
    shared = _shared([rows for _, rows in split_by_engine(measured_images(scores))])
    for engine, targets in all_fitted:
        for one in targets:
            found.append(
                {"by": "engine", "engine": engine, "name": engine, "target": one.target, **_engine(one, shared)}
            )
            for by, column in (("run", "run_id"), ("prompt", "prompt")):
                for name, row in _groups(one, column).items():
                    found.append({"by": by, "engine": engine, "name": name, "target": one.target, **row})
    return make_frame(found, SWEEP_COMPARISON_SCHEMA).sort(
        pl.col("by").replace_strict({"engine": 0, "run": 1, "prompt": 2}), maintain_order=True
    )


def describe_scores(scores: pl.DataFrame) -> list[str]:
    """What is compared, a sentence an engine: images, runs, prompts and the settings tried."""
    words = []
    for engine, rows in split_by_engine(measured_images(scores)):
        ranges = []
        for setting in tried_images(rows):
            values = float_column(rows.drop_nulls(setting), setting)
            if values.size:
                ranges.append(f"{setting} {values.min():g} to {values.max():g}")
        counts = [
            f"{rows.height:,} images",
            f"{rows['run_id'].n_unique()} runs",
            f"{rows['prompt'].n_unique()} prompts",
        ]
        counts = [count.removesuffix("s") if count.startswith("1 ") else count for count in counts]
        words.append(f"{engine}: {', '.join(counts + ranges)}")
    return words


def _shared(engines: list[pl.DataFrame]) -> dict[str, tuple[float, float]] | None:
    """The range of each setting that every engine which has it was tried at; None where there is none."""
    ends: dict[str, tuple[float, float]] = {}
    for rows in engines:
        for setting in tried_images(rows):
            values = float_column(rows.drop_nulls(setting), setting)
            if not values.size:
                return None
            values = effective_guidance(values) if setting == "guidance" else values.clip(1)
            low, high = ends.get(setting, (-np.inf, np.inf))
            ends[setting] = (max(low, float(values.min())), min(high, float(values.max())))
    return ends if ends and all(low <= high for low, high in ends.values()) else None


def _engine(one: FittedResponse, shared: Mapping[str, tuple[float, float]] | None) -> Row:
    row = _adjusted_mean(one.rows, float_column(one.rows, one.target)) | {"note": one.note}
    if one.fit is None:
        return row
    if shared is None:
        return row | {"note": summary_columns("the engines share no settings", one.note)}
    steps = np.geomspace(*shared["steps"], MIN_SHARED)
    guidance = (
        np.linspace(*shared["guidance"], MIN_SHARED) if "guidance" in tried_images(one.rows) else np.array([np.nan])
    )
    pairs = to_coordinates(steps[:, None], guidance[None, :]).reshape(-1, 2)
    adjusted, low, high = one.bands(one.columns(pairs).mean(axis=0)[None, :])
    row |= {"adjusted": float(adjusted[0]), "adjusted_low": float(low[0]), "adjusted_high": float(high[0])}
    row |= {"steps_from": round(steps[0]), "steps_to": round(steps[-1])}
    return row | (
        {"guidance_from": float(guidance[0]), "guidance_to": float(guidance[-1])} if len(guidance) > 1 else {}
    )


def _groups(one: FittedResponse, column: str) -> dict[str, Row]:
    """The rows of the runs or prompts with the most images, by name."""
    values = float_column(one.rows, one.target)
    level = None
    if one.fit is not None and one.sample is not None:
        expected = one.fit.at(one.sample.settings)
        level = values - expected + expected.mean()
    numbered = one.rows.with_row_index("at").drop_nulls(column)
    counted = numbered[column].value_counts(sort=True).filter(pl.col("count") > 1)
    names = counted.sort("count", column, descending=[True, False])[column].head(MAX_NAMES).to_list()
    members = numbered.filter(pl.col(column).is_in(names)).group_by(column).agg("at")
    places = dict(zip(members[column], members["at"], strict=True))
    more = f"{counted.height - len(names)} more are not shown" if counted.height > len(names) else None
    found = {}
    for name in names:
        at = places[name].to_numpy()
        row = _adjusted_mean(one.rows[at], values[at]) | {"note": summary_columns(more, one.note)}
        if level is not None:
            row |= {
                f"adjusted{end}": v
                for end, v in zip(("", "_low", "_high"), _mean(one.rows[at], level[at]), strict=True)
            }
        found[name] = row
    return found


def _adjusted_mean(rows: pl.DataFrame, values: Floats) -> Row:
    mean, low, high = _mean(rows, values)
    elapsed = rows["elapsed_ms"].drop_nulls()
    row: Row = {"n": rows.height, "mean": mean, "low": low, "high": high}
    if len(elapsed):
        row["seconds"] = float(elapsed.sum()) / len(elapsed) / 1000
    for name in ("steps", "guidance"):
        known = rows[name].drop_nulls()
        if len(known):
            row |= {f"{name}_from": known.min(), f"{name}_to": known.max()}
    return row


def _mean(rows: pl.DataFrame, values: Floats) -> tuple[float | None, float | None, float | None]:
    """The mean of values (n,) and its interval, each cluster drawn whole."""
    n = len(values)
    if n < 2:
        return (float(values[0]) if n else None), None, None
    of, mean = find_clusters(rows), float(values.mean())
    pulls = of.sums(values - mean) / n
    reach = of.t * float(np.sqrt((pulls**2).sum() * of.count / (of.count - 1)))
    return mean, mean - reach, mean + reach
