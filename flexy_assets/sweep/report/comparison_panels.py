"""Engines, runs, categories and prompts side by side: the report's panels of the table `sweep_comparison`."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from flexy_assets.reporting.formatting import format_number
from flexy_assets.sweep.analysis import METRIC_LABELS
from flexy_assets.sweep.analysis.comparison import GROUPS

AXIS_ENDS: Final = 10
"""Runs or prompts shown from the top, and as many from the bottom."""
AXIS_MARGIN: Final = 4.0
"""Percent of a panel's width left free on either side."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ComparisonPanel:
    """One target of several engines or of one engine's groups, best first, on one axis from `low` to `high`.

    `bars` are rows of `SWEEP_COMPARISON_SCHEMA` with `at`: percent of the width at which `adjusted`, `adjusted_low`,
    `adjusted_high` and `mean` lie; `between` rows are left out after the first `AXIS_ENDS`.
    """

    target: str
    engine: str
    words: str
    low: float
    high: float
    bars: list[Row]
    between: int


@dataclass(frozen=True)
class PanelGroup:
    """The panels by engine or group: those in sight, and those that are folded away."""

    by: str
    open: list[ComparisonPanel]
    folded: list[ComparisonPanel]


def comparison_panels(comparison: pl.DataFrame) -> list[PanelGroup]:
    """Return a group for the engines and each of `GROUPS` that there are several of.

    Engines are compared by each metric, the others within an engine. Their overall score is in sight; their metrics,
    and prompts, are folded away.
    """
    known = comparison.drop_nulls("mean")
    engines = [panel for metric in METRIC_LABELS if (panel := _panel(known, "engine", metric))]
    parts = [PanelGroup("engine", engines, [])] if engines else []
    for by in GROUPS:
        panels = [
            panel
            for target in ("overall", *METRIC_LABELS)
            for engine in known["engine"].unique().sort()
            if (panel := _panel(known, by, target, engine))
        ]
        opened = [panel for panel in panels if by != "prompt" and panel.target == "overall"]
        if panels:
            parts.append(PanelGroup(by, opened, [panel for panel in panels if panel not in opened]))
    return parts


def _panel(known: pl.DataFrame, by: str, target: str, engine: str = "") -> ComparisonPanel | None:
    """Return None where there are no two to compare."""
    of_target = known.filter(by=by, target=target)
    rows = of_target.filter(engine=engine) if engine else of_target
    if rows.height < 2:
        return None
    ranked = rows.sort(pl.coalesce("adjusted", "mean"), descending=True)
    between = max(ranked.height - 2 * AXIS_ENDS, 0)
    bars = pl.concat([ranked.head(AXIS_ENDS), ranked.tail(AXIS_ENDS)]) if between else ranked
    # Of all engines, so that panels of one target can be compared by eye.
    ends = of_target.select(
        low=pl.min_horizontal("adjusted_low", "mean").min(), high=pl.max_horizontal("adjusted_high", "mean").max()
    )
    low, high = ends.row(0)
    describe = {"engine": _describe_engines, "category": _describe_weakest, "complexity": _describe_weakest}.get(by)
    words = describe(ranked) if describe else ""
    placed = [row | {"at": _places(row, low, high)} for row in bars.iter_rows(named=True)]
    return ComparisonPanel(target, engine, words, low, high, placed, between)


def _places(row: Row, low: float, high: float) -> Row:
    width = (high - low) or 1.0
    return {
        name: None if row[name] is None else round(AXIS_MARGIN + (100 - 2 * AXIS_MARGIN) * (row[name] - low) / width, 2)
        for name in ("adjusted", "adjusted_low", "adjusted_high", "mean")
    }


def _describe_engines(ranked: pl.DataFrame) -> str:
    """Say which engine is highest at the same settings, and whether its interval is apart."""
    first, *others = ranked.iter_rows(named=True)
    if first["adjusted"] is None or any(row["adjusted"] is None for row in others):
        return f"Not at the same settings: {first['note'] or others[-1]['note'] or 'no model'}."
    others_high = max(row["adjusted_high"] for row in others)
    if first["adjusted_low"] > others_high:
        rest = "the other" if len(others) == 1 else "all others"
        return f"{first['name']} is highest: its interval lies above {rest}."
    return "The intervals of the highest two overlap: which is higher is uncertain."


def _describe_weakest(ranked: pl.DataFrame) -> str:
    """Say in which groups the engine is weak: whose interval lies below the mean of all its images."""
    known = ranked.drop_nulls(["adjusted", "adjusted_high"])
    if known.height < 2:
        return ""
    mean = float(np.average(known["adjusted"], weights=known["n"]))
    weak = known.filter(pl.col("adjusted_high") < mean).sort("adjusted")
    if weak.is_empty():
        return "No group's interval lies below the mean of all."
    groups = (f"{row['name']} ({format_number(row['adjusted'] - mean)})" for row in weak.iter_rows(named=True))
    return f"Weak, with the interval below the mean of all: {', '.join(groups)}."


def shared_settings(comparison: pl.DataFrame) -> str:
    """Return the settings that all engines were tried at, in words; empty where there are none."""
    adjusted = comparison.filter(by="engine").drop_nulls("adjusted")
    if adjusted.is_empty():
        return ""
    guidance = adjusted.drop_nulls("guidance_from")
    words = f"{adjusted['steps_from'][0]} to {adjusted['steps_to'][0]} steps"
    if guidance.height:
        low, high = (format_number(guidance[end][0], 2) for end in ("guidance_from", "guidance_to"))
        words += f" and guidance {low} to {high}"
    return words
