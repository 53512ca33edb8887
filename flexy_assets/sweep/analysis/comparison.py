"""Means of engines, sweeps, categories and prompts: raw, and adjusted to the same settings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import polars as pl

from flexy_assets.sweep.analysis.basis_functions import to_coordinates
from flexy_assets.sweep.analysis.clusters import find_clusters
from flexy_assets.sweep.analysis.response_model import FittedResponse, tabulate_responses
from flexy_assets.sweep.analysis.rows import (
    Floats,
    Row,
    effective_guidance,
    float_column,
    join_notes,
    setting_names,
    split_by_engine,
)
from flexy_assets.sweep.analysis.schemas import SWEEP_COMPARISON_SCHEMA

MAX_NAMES: Final = 200
"""Sweeps or prompts of an engine that are compared: those with the most images."""
FACTORS: Final = {
    "scheduler": pl.col("scheduler").fill_null("the engine's own"),
    "size": pl.format("{}×{}", "width", "height"),
    "negative_prompt": pl.col("negative_prompt").fill_null("none"),
}
"""The settings besides steps and guidance, by whose values an engine's images are compared where there are several."""
GROUPS: Final = {
    "run": "run_id",
    **{name: name for name in ("category", "complexity", *FACTORS, "prompt")},
}
"""What an engine's images are compared by, with its column."""
MIN_SHARED: Final = 15
"""Values of a setting, in each direction, over which engines are averaged."""


def compare_groups(scores: pl.DataFrame, responses: Iterable[FittedResponse]) -> pl.DataFrame:
    """Return the mean of every target of each engine, sweep, category and prompt, raw and at the same settings.

    `adjusted` is, for an engine, its surface averaged over the steps and guidance that all engines were tried at
    (`steps_from` to `guidance_to`); for the others, its mean less what its settings explain; the values of a further
    setting (`FACTORS`) are compared within prompts, or within pairs of prompt and seed where several images share each.
    Z-scores make
    "overall" comparable within an engine only. 95 % intervals resample prompts where six or more repeat, else images.
    At most `MAX_NAMES` sweeps and prompts an engine. Returns `SWEEP_COMPARISON_SCHEMA`.
    """
    shared = _shared_ranges(scores)

    def summarize(response: FittedResponse) -> Iterator[Row]:
        yield {"by": "engine", "name": response.engine, **_summarize_engine(response, shared)}
        for by, column in GROUPS.items():
            for row in _summarize_groups(response, column):
                yield {"by": by, **row}

    table = tabulate_responses(responses, summarize, SWEEP_COMPARISON_SCHEMA)
    return table.sort(pl.col("by").cast(pl.Enum(["engine", *GROUPS])), maintain_order=True)


def _shared_ranges(scores: pl.DataFrame) -> dict[str, tuple[float, float]] | None:
    """Return the range of each setting that all engines with it have in common; None where there is none."""
    ends: dict[str, tuple[float, float]] = {}
    for _, rows in split_by_engine(scores):
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
    if not response.models:
        return row
    if shared is None:
        return row | {"note": join_notes("the engines share no settings", response.note)}
    guided = "guidance" in setting_names(response.rows)
    steps = np.geomspace(*shared["steps"], MIN_SHARED)
    guidance = np.linspace(*shared["guidance"], MIN_SHARED) if guided else np.array([np.nan])
    pairs = to_coordinates(steps[:, None], guidance[None, :]).reshape(-1, 2)
    adjusted, low, high = response.bands(response.columns(pairs).mean(axis=0)[None, :])
    row |= {"adjusted": adjusted[0], "adjusted_low": low[0], "adjusted_high": high[0]}
    row |= {"steps_from": round(steps[0]), "steps_to": round(steps[-1])}
    return row | ({"guidance_from": guidance[0], "guidance_to": guidance[-1]} if guided else {})


def _summarize_groups(response: FittedResponse, column: str) -> Iterator[Row]:
    """Yield the rows of the groups with the most images."""
    values, adjusted_values = float_column(response.rows, response.target), None
    if response.models:
        expected = response.predict(response.sample.settings)
        adjusted_values = values - expected + expected.mean()
    indexed = response.rows.with_columns(**FACTORS).with_row_index("at").drop_nulls(column)
    groups = indexed.group_by(column).agg("at", count=pl.len()).filter(pl.col("count") > 1)
    largest = groups.sort("count", column, descending=[True, False]).head(MAX_NAMES)
    if column in FACTORS and groups.height < 2:
        return
    omitted = groups.height - largest.height
    note = join_notes(f"{omitted} more are not shown" if omitted else None, response.note)
    members = largest["at"].to_list()
    levels = _compare_within_blocks(response, members) if response.models and column in FACTORS else None
    for place, (name, at) in enumerate(zip(largest[column], members, strict=True)):
        rows = response.rows[at]
        row = {"name": name, "note": note} | _describe_group(rows, values[at])
        if adjusted_values is not None:
            level = levels[place] if levels else _clustered_mean(rows, adjusted_values[at])
            row |= dict(zip(("adjusted", "adjusted_low", "adjusted_high"), level, strict=True))
        yield row


def _compare_within_blocks(response: FittedResponse, members: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """Return each group's mean at the same settings, with the interval of its difference from the mean of all.

    By least squares with the random intercept of the fits: groups are compared within the clusters' blocks.
    """
    sample, labels = response.sample, np.full(len(response.sample.y), len(members))
    for place, at in enumerate(members):
        labels[at] = place
    groups = np.eye(labels.max() + 1)[labels]
    columns, residuals = sample.whitened(groups), sample.whitened(sample.y - response.predict(sample.settings))
    solution = np.linalg.pinv(columns)
    effects = solution @ residuals
    contrasts = np.eye(len(effects)) - groups.mean(axis=0)
    influences = sample.clusters.sums((contrasts @ solution * (residuals - columns @ effects)).T)
    widening = sample.clusters.count / max(sample.clusters.count - 1, 1)
    margins = sample.clusters.t * np.sqrt((influences**2).sum(axis=0) * widening)
    means = sample.y.mean() + contrasts @ effects
    return [(mean, mean - margin, mean + margin) for mean, margin in zip(means.tolist(), margins.tolist(), strict=True)]


def _describe_group(rows: pl.DataFrame, values: Floats) -> Row:
    mean, low, high = _clustered_mean(rows, values)
    row: Row = {"n": rows.height, "mean": mean, "low": low, "high": high}
    if elapsed := rows["elapsed_ms"].drop_nulls().to_list():
        row["seconds"] = sum(elapsed) / len(elapsed) / 1000
    for name in ("steps", "guidance"):
        row |= {f"{name}_from": rows[name].min(), f"{name}_to": rows[name].max()}
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
