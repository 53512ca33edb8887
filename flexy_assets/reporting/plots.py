"""Finished tables as pictures for Dagster's UI: without a background, legible on white and on black.

Each function takes the table of the asset it is named after and returns WebP bytes, or None where there is nothing to
draw. An engine, or a method of editing, has one colour in all panels; of more than there are colours the first are
drawn. matplotlib is loaded where it is used, and without pyplot: nothing is global.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from flexy_assets.sweep.analysis import COLUMN_LABELS, METRIC_LABELS, SETTING_LABELS, TARGET_LABELS, effective_guidance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

INK: Final = "#767676"
"""As far from white as from black, by contrast."""
COLOURS: Final = ("#3b7dc4", "#d9653b", "#2f9a6b", "#a065c4", "#a8842c")
BAND_OPACITY: Final = 0.28
"""Opacity of what is behind a line."""
DPI: Final = 100


def plot_sweep_response(table: pl.DataFrame) -> bytes | None:
    """Every target over steps (above) and over guidance (below), with its 95 % band."""
    known = table.filter(pl.col("curve") != "surface").drop_nulls("predicted")
    targets, curves = _ordered_subset(TARGET_LABELS, known["target"]), _ordered_subset(SETTING_LABELS, known["curve"])
    if not known.height:
        return None
    figure, panels = _panels(len(curves), len(targets))
    for curve, along in zip(curves, panels, strict=True):
        for target, axes in zip(targets, along, strict=True):
            for engine, colour in _colours(known, "engine").items():
                rows = known.filter(engine=engine, target=target, curve=curve)
                axes.fill_between(rows[curve], rows["low"], rows["high"], color=colour, alpha=BAND_OPACITY, linewidth=0)
                axes.plot(rows[curve], rows["predicted"], color=colour, linewidth=1.6)
            _label_axes(axes, COLUMN_LABELS[target] if curve == curves[0] else "", COLUMN_LABELS[curve])
            if curve == "steps":
                _use_log2_axis(axes)
    return _webp(figure, _colours(known, "engine"))


def plot_sweep_effects(table: pl.DataFrame) -> bytes | None:
    """What steps, guidance and their interaction change of each target, with 95 % intervals."""
    known = table.drop_nulls("change")
    targets, effects = (
        _ordered_subset(TARGET_LABELS, known["target"]),
        known["effect"].unique(maintain_order=True).to_list(),
    )
    if not known.height:
        return None
    figure, panels = _panels(1, len(targets), height=0.9 + 0.4 * len(effects))
    for target, axes in zip(targets, panels[0], strict=True):
        axes.axvline(0, color=INK, linewidth=0.6)
        _intervals(axes, known.filter(target=target), "effect", effects, "change", _colours(known, "engine"))
        _label_axes(axes, COLUMN_LABELS[target], "change")
    return _webp(figure, _colours(known, "engine"))


def plot_diminishing_returns(table: pl.DataFrame) -> bytes | None:
    """Beyond how many steps one more does not pay, with 95 % intervals; to the most tried where they have no end."""
    known = table.drop_nulls("low").with_columns(pl.col("high").fill_null(pl.col("steps_to")))
    targets = _ordered_subset(TARGET_LABELS, known["target"])
    if not known.height:
        return None
    figure, panels = _panels(1, 1, width=6.0, height=0.9 + 0.4 * len(targets))
    axes = panels[0, 0]
    _intervals(axes, known, "target", targets, "beyond", _colours(known, "engine"))
    axes.set_xlim(known.select(pl.min("steps_from")).item() * 0.9, known.select(pl.max("steps_to")).item() * 1.1)
    _label_axes(axes, "Beyond so many steps one more gains too little", COLUMN_LABELS["steps"])
    _use_log2_axis(axes)
    return _webp(figure, _colours(known, "engine"))


def plot_pareto_front(table: pl.DataFrame) -> bytes | None:
    """Overall quality against seconds: settings on the front joined, each with its steps and 95 % interval."""
    known = table.filter(target="overall").drop_nulls(["seconds", "predicted"])
    if not known.height:
        return None
    figure, panels = _panels(1, 1, width=6.0, height=3.4)
    axes = panels[0, 0]
    for engine, colour in _colours(known, "engine").items():
        rows = known.filter(engine=engine)
        axes.scatter(rows["seconds"], rows["predicted"], s=8, color=colour, alpha=2 * BAND_OPACITY, linewidth=0)
        front = rows.filter("on_front")
        axes.fill_between(front["seconds"], front["low"], front["high"], color=colour, alpha=BAND_OPACITY, linewidth=0)
        axes.plot(front["seconds"], front["predicted"], color=colour, marker="o", markersize=4, linewidth=1.6)
        for steps, *at in front.select("steps", "seconds", "predicted").iter_rows():
            axes.annotate(f"{steps}", at, xytext=(4, -10), textcoords="offset points", color=colour, fontsize=8)
    _label_axes(axes, "What no other setting beats, with its steps", "Seconds an image", "Overall, SD")
    return _webp(figure, _colours(known, "engine"))


def plot_sweet_spots(table: pl.DataFrame, scores: pl.DataFrame) -> bytes | None:
    """The settings that cannot be told from the best, the best (star) and of overall the value for time (ring).

    A row of panels an engine. Behind them are the settings of `scores` (`analysis.SCORES`).
    """
    known = table.drop_nulls(["steps", "guidance"])
    targets = _ordered_subset(TARGET_LABELS, known["target"])
    if not targets:
        return None
    colours = _colours(known, "engine")
    figure, panels = _panels(len(colours), len(targets))
    for (engine, colour), along in zip(colours.items(), panels, strict=True):
        rows = {row["target"]: row for row in known.filter(engine=engine).to_dicts()}
        images = scores.filter(engine=engine).drop_nulls(["steps", "guidance"])
        for target, axes in zip(targets, along, strict=True):
            axes.scatter(images["steps"], effective_guidance(images["guidance"]), s=3, color=INK, linewidth=0)
            if row := rows.get(target):
                region = np.array([(spot["steps"], spot["guidance"]) for spot in row["region"]], dtype=float)
                axes.scatter(*region.T, s=24, marker="s", color=colour, alpha=2 * BAND_OPACITY, linewidth=0)
                axes.scatter(row["steps"], row["guidance"], s=90, marker="*", color=colour)
            if target == "overall" and (row := rows.get("value")):
                axes.scatter(row["steps"], row["guidance"], s=80, facecolor="none", edgecolor=colour, linewidth=1.6)
            _label_axes(
                axes,
                COLUMN_LABELS[target],
                COLUMN_LABELS["steps"],
                COLUMN_LABELS["guidance"] if target == targets[0] else "",
            )
            _use_log2_axis(axes)
    return _webp(figure, colours)


def plot_sweep_comparison(table: pl.DataFrame) -> bytes | None:
    """Each engine's mean of each metric at the settings all were tried at, with 95 % intervals; None for one engine."""
    known = table.filter(pl.col("by") == "engine", pl.col("target").is_in(list(METRIC_LABELS))).drop_nulls("adjusted")
    colours, targets = _colours(known, "engine"), _ordered_subset(METRIC_LABELS, known["target"])
    if len(colours) < 2:
        return None
    figure, panels = _panels(1, len(targets), height=0.9 + 0.3 * len(colours))
    level = known.with_columns(low="adjusted_low", high="adjusted_high")
    for target, axes in zip(targets, panels[0], strict=True):
        _intervals(axes, level.filter(target=target), "engine", list(colours), "adjusted", colours)
        _label_axes(axes, COLUMN_LABELS[target], "at the same settings")
    return _webp(figure, {})


def plot_metric_correlations(table: pl.DataFrame) -> bytes | None:
    """Spearman's correlation of every two metrics, and of the settings with them: a panel an engine."""
    known = table.drop_nulls("spearman")
    if not known.height:
        return None
    engines = list(_colours(known, "engine"))
    figure, panels = _panels(1, len(engines), width=4.4, height=3.6)
    for engine, axes in zip(engines, panels[0], strict=True):
        rows = known.filter(engine=engine)
        there = set(rows["left"]) | set(rows["right"])
        across, down = _ordered_subset(METRIC_LABELS, there), _ordered_subset(METRIC_LABELS | SETTING_LABELS, there)
        pairs = {frozenset(pair): value for *pair, value in rows.select("left", "right", "spearman").iter_rows()}
        values = [[pairs.get(frozenset((one, other)), np.nan) for other in across] for one in down]
        axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for (y, x), value in np.ndenumerate(np.array(values)):
            if np.isfinite(value):
                ink = "white" if abs(value) > 0.6 else "black"
                axes.text(x, y, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=9, color=ink)
        axes.set_xticks(range(len(across)), [COLUMN_LABELS[name] for name in across], rotation=20)
        axes.set_yticks(range(len(down)), [COLUMN_LABELS[name] for name in down])
        _label_axes(axes, f"{engine}: Spearman’s ρ between images", "")
    return _webp(figure, {})


def plot_edit_comparison(levels: pl.DataFrame) -> bytes | None:
    """Each method's mean of each metric at each budget, with 95 % intervals (of `edits.comparison.LEVELS`)."""
    known = levels.drop_nulls("mean")
    metrics = known["metric"].unique(maintain_order=True).to_list()
    if not known.height:
        return None
    named = known.with_columns(search=pl.format("{} at {}", "method", "budget"))
    searches = named.sort("budget", "method")["search"].unique(maintain_order=True).to_list()
    columns = min(4, len(metrics))
    figure, panels = _panels(-(-len(metrics) // columns), columns, height=0.9 + 0.3 * len(searches))
    for axes, metric in zip(panels.flat, metrics, strict=False):
        _intervals(axes, named.filter(metric=metric), "search", searches, "mean", _colours(known, "method"), "method")
        _label_axes(axes, metric, "")
    for axes in panels.flat[len(metrics) :]:
        axes.set_visible(False)
    return _webp(figure, {})


def _ordered_subset(names: Collection[str], there: Collection[str]) -> list[str]:
    """Those of the names that are there, in their own order."""
    return [name for name in names if name in set(there)]


def _colours(table: pl.DataFrame, column: str) -> dict[str, str]:
    """A colour for each of the first values of a column."""
    return dict(zip(table[column].unique(maintain_order=True), COLOURS, strict=False))


def _panels(rows: int, columns: int, width: float = 2.4, height: float = 2.1) -> tuple[Figure, NDArray[Any]]:
    """A figure and its (rows, columns) axes, each so many inches wide and high."""
    from matplotlib.figure import Figure

    figure = Figure((width * columns, height * rows), DPI, facecolor="none", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_facecolor("none")
        axes.tick_params(which="both", colors=INK, labelsize=8)
        axes.spines[:].set(color=INK, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _label_axes(axes: Axes, title: str, x: str, y: str = "") -> None:
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def _use_log2_axis(axes: Axes) -> None:
    """Steps by their logarithm, as the models take them, written as whole numbers."""
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _intervals(
    axes: Axes,
    table: pl.DataFrame,
    column: str,
    names: Sequence[str],
    value: str,
    colours: dict[str, str],
    by: str = "engine",
) -> None:
    """Values with their `low` to `high`, a line a name from the top; of one name side by side, coloured `by`."""
    places = {name: place for place, name in enumerate(names)}
    # Where a name is of one colour only, nothing has to make room.
    apart = 0.16 if table[column].n_unique() < table.height else 0.0
    for number, (one, colour) in enumerate(colours.items()):
        rows = table.filter(pl.col(by) == one)
        y = np.array([places[name] for name in rows[column]], dtype=float) + apart * (number - (len(colours) - 1) / 2)
        axes.hlines(y, rows["low"], rows["high"], color=colour, linewidth=4, alpha=2 * BAND_OPACITY)
        axes.scatter(rows[value].cast(pl.Float64).fill_null(np.nan), y, s=22, color=colour, zorder=3)
    axes.set_yticks(range(len(names)), [COLUMN_LABELS.get(name, name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _webp(figure: Figure, legend: dict[str, str]) -> bytes:
    """The figure's bytes, below it whose the colours are where there are several."""
    from matplotlib.lines import Line2D

    if len(legend) > 1:
        lines = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in legend.items()]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, labelcolor=INK)
    buffer = BytesIO()
    figure.savefig(buffer, format="webp", pil_kwargs={"lossless": True})
    return buffer.getvalue()
