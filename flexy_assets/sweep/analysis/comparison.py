"""Means of engines, sweeps and prompts: raw, and adjusted to the same settings."""

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
    join_notes,
    make_frame,
    measured_images,
    setting_names,
    split_by_engine,
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
"""Sweeps or prompts of an engine that are compared: those with the most images."""
MIN_SHARED: Final = 15
"""Values of a setting, in each direction, over which engines are averaged."""


def compare_groups(
    scores: pl.DataFrame, regression: pl.DataFrame, weights: Mapping[str, float] | None = None, seed: int = 0
) -> pl.DataFrame:
    """Return each engine's, sweep's and prompt's mean of every target, raw and adjusted to the same settings.

    `adjusted` is, for an engine, its surface averaged over the steps and guidance that all engines were tried at
    (`steps_from` to `guidance_to`); for a sweep or prompt, its mean less what its settings explain. Z-scores make
    "overall" comparable within an engine only. 95 % intervals resample prompts where six or more repeat, else images.
    At most `MAX_NAMES` sweeps and prompts an engine. Returns `SWEEP_COMPARISON_SCHEMA`.
    """
    rows: list[Row] = []
    fitted = list(fit_responses(scores, regression, weights or {}, seed))
    shared = _shared_ranges([rows for _, rows in split_by_engine(measured_images(scores))])
    for engine, targets in fitted:
        for response in targets:
            rows.append(
                {
                    "by": "engine",
                    "engine": engine,
                    "name": engine,
                    "target": response.target,
                    **_summarize_engine(response, shared),
                }
            )
            for by, column in (("run", "run_id"), ("prompt", "prompt")):
                for name, row in _summarize_groups(response, column).items():
                    rows.append({"by": by, "engine": engine, "name": name, "target": response.target, **row})
    return make_frame(rows, SWEEP_COMPARISON_SCHEMA).sort(
        pl.col("by").replace_strict({"engine": 0, "run": 1, "prompt": 2}), maintain_order=True
    )


def describe_scores(scores: pl.DataFrame) -> list[str]:
    """Return what is compared, a sentence an engine: images, sweeps, prompts and the settings tried."""
    words = []
    for engine, rows in split_by_engine(measured_images(scores)):
        ranges = []
        for setting in setting_names(rows):
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


def _shared_ranges(engines: list[pl.DataFrame]) -> dict[str, tuple[float, float]] | None:
    """Return the range of each setting that all engines with it have in common; None where there is none."""
    ends: dict[str, tuple[float, float]] = {}
    for rows in engines:
        for setting in setting_names(rows):
            values = float_column(rows.drop_nulls(setting), setting)
            if not values.size:
                return None
            values = effective_guidance(values) if setting == "guidance" else values.clip(1)
            low, high = ends.get(setting, (-np.inf, np.inf))
            ends[setting] = (max(low, float(values.min())), min(high, float(values.max())))
    return ends if ends and all(low <= high for low, high in ends.values()) else None


def _summarize_engine(response: FittedResponse, shared: Mapping[str, tuple[float, float]] | None) -> Row:
    row = _describe_group(response.rows, float_column(response.rows, response.target)) | {"note": response.note}
    if response.fit is None:
        return row
    if shared is None:
        return row | {"note": join_notes("the engines share no settings", response.note)}
    steps = np.geomspace(*shared["steps"], MIN_SHARED)
    guidance = (
        np.linspace(*shared["guidance"], MIN_SHARED)
        if "guidance" in setting_names(response.rows)
        else np.array([np.nan])
    )
    pairs = to_coordinates(steps[:, None], guidance[None, :]).reshape(-1, 2)
    adjusted, low, high = response.bands(response.columns(pairs).mean(axis=0)[None, :])
    row |= {"adjusted": float(adjusted[0]), "adjusted_low": float(low[0]), "adjusted_high": float(high[0])}
    row |= {"steps_from": round(steps[0]), "steps_to": round(steps[-1])}
    return row | (
        {"guidance_from": float(guidance[0]), "guidance_to": float(guidance[-1])} if len(guidance) > 1 else {}
    )


def _summarize_groups(response: FittedResponse, column: str) -> dict[str, Row]:
    """Return the rows of the sweeps or prompts with the most images, by name."""
    values = float_column(response.rows, response.target)
    adjusted_values = None
    if response.fit is not None and response.sample is not None:
        expected = response.fit.predict(response.sample.settings)
        adjusted_values = values - expected + expected.mean()
    indexed = response.rows.with_row_index("at").drop_nulls(column)
    group_sizes = indexed[column].value_counts(sort=True).filter(pl.col("count") > 1)
    names = group_sizes.sort("count", column, descending=[True, False])[column].head(MAX_NAMES).to_list()
    members = indexed.filter(pl.col(column).is_in(names)).group_by(column).agg("at")
    indices_by_name = dict(zip(members[column], members["at"], strict=True))
    omitted_note = f"{group_sizes.height - len(names)} more are not shown" if group_sizes.height > len(names) else None
    rows_by_name = {}
    for name in names:
        row_indices = indices_by_name[name].to_numpy()
        row = _describe_group(response.rows[row_indices], values[row_indices]) | {
            "note": join_notes(omitted_note, response.note)
        }
        if adjusted_values is not None:
            row |= {
                f"adjusted{end}": v
                for end, v in zip(
                    ("", "_low", "_high"),
                    _clustered_mean(response.rows[row_indices], adjusted_values[row_indices]),
                    strict=True,
                )
            }
        rows_by_name[name] = row
    return rows_by_name


def _describe_group(rows: pl.DataFrame, values: Floats) -> Row:
    mean, low, high = _clustered_mean(rows, values)
    elapsed = rows["elapsed_ms"].drop_nulls()
    row: Row = {"n": rows.height, "mean": mean, "low": low, "high": high}
    if len(elapsed):
        row["seconds"] = float(elapsed.sum()) / len(elapsed) / 1000
    for name in ("steps", "guidance"):
        known_values = rows[name].drop_nulls()
        if len(known_values):
            row |= {f"{name}_from": known_values.min(), f"{name}_to": known_values.max()}
    return row


def _clustered_mean(rows: pl.DataFrame, values: Floats) -> tuple[float | None, float | None, float | None]:
    """Return the mean of values (n,) and its interval, clusters resampled whole."""
    n = len(values)
    if n < 2:
        return (float(values[0]) if n else None), None, None
    clusters, mean = find_clusters(rows), float(values.mean())
    influences = clusters.sums(values - mean) / n
    margin = clusters.t * float(np.sqrt((influences**2).sum() * clusters.count / (clusters.count - 1)))
    return mean, mean - margin, mean + margin
