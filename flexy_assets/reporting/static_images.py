"""Figures as pictures for Dagster's UI: WebP without a background, drawn by matplotlib, which needs no browser."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flexy_assets.reporting.figures import Figure, Row, in_ink
from flexy_assets.reporting.plot_style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI: Final = 100
POINTS_PER_PIXEL: Final = 0.72
"""matplotlib's points in one of Plotly's pixels."""
SYMBOLS: Final = {"circle": "o", "circle-open": "o", "star": "*", "square": "s", "diamond": "D"}


def render_webp(figures: Sequence[Figure], columns: int = 5, width: float = 2.4, height: float = 2.1) -> bytes:
    """The figures as one picture, `columns` in a row, each so many inches wide and high.

    Below it are the names of the traces where there are several. matplotlib is loaded without pyplot: nothing is
    global.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    across = min(columns, len(figures))
    down = -(-len(figures) // across)
    canvas = Canvas((width * across, height * down), DPI, facecolor="none", layout="constrained")
    panels = canvas.subplots(down, across, squeeze=False).flat
    for axes, figure in zip(panels, figures, strict=False):
        _draw_figure(axes, figure)
    for axes in panels[len(figures) :]:
        axes.set_visible(False)
    names = {
        trace["name"]: _rgba((trace.get("line") or trace["marker"])["color"])
        for figure in figures
        for trace in figure.data
        if trace.get("name")
    }
    if len(names) > 1:
        lines = [Line2D([], [], color=colour, linewidth=3, label=html.unescape(name)) for name, colour in names.items()]
        canvas.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, labelcolor=INK)
    buffer = BytesIO()
    canvas.savefig(buffer, format="webp", pil_kwargs={"lossless": True})
    return buffer.getvalue()


def _draw_figure(axes: Axes, figure: Figure) -> None:
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=INK, labelsize=8)
    axes.spines[:].set(color=INK, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(figure.title, color=INK, fontsize=10, loc="left")
    draw = {"scatter": _draw_scatter, "heatmap": _draw_heatmap}
    for trace in figure.data:
        draw[trace["type"]](axes, in_ink(trace))
    for name in ("x", "y"):
        _set_axis(axes, name, figure.layout.get(f"{name}axis", {}))


def _set_axis(axes: Axes, name: str, axis: Row) -> None:
    """Title, scale, bounds and ticks, as Plotly has them; on a logarithmic axis its `range` is of exponents."""
    from matplotlib.ticker import NullLocator

    log = axis.get("type") == "log"
    settings: dict[str, Any] = {"label": axis.get("title", {}).get("text", "")}
    if log:
        settings["scale"] = "log"
    if "range" in axis:
        settings["lim"] = [10**end for end in axis["range"]] if log else axis["range"]
    axes.set(**{f"{name}{key}": value for key, value in settings.items()})
    part = axes.xaxis if name == "x" else axes.yaxis
    part.label.set(color=INK, fontsize=9)
    if "tickvals" in axis:
        part.set_ticks(axis["tickvals"], axis["ticktext"])
        part.set_minor_locator(NullLocator())
    if axis.get("zeroline"):
        (axes.axvline if name == "x" else axes.axhline)(0, color=INK, linewidth=0.6)


def _draw_scatter(axes: Axes, trace: Row) -> None:
    x, y = (np.array(trace[name], dtype=float) for name in ("x", "y"))
    line, marker = trace.get("line", {}), trace.get("marker", {})
    if trace.get("fill"):
        axes.fill(x, y, color=_rgba(trace["fillcolor"]), linewidth=0)
        return
    if "lines" in trace["mode"]:
        width = line.get("width", 2) * POINTS_PER_PIXEL
        axes.plot(x, y, color=_rgba(line["color"]), linewidth=width, linestyle=":" if line.get("dash") else "-")
    if "markers" in trace["mode"]:
        colour, symbol = _rgba(marker["color"]), marker.get("symbol", "circle")
        hollow = symbol.endswith("-open")
        axes.scatter(
            *(x, y, (np.array(marker["size"]) * POINTS_PER_PIXEL) ** 2),
            marker=SYMBOLS[symbol],
            facecolor="none" if hollow else colour,
            edgecolor=colour if hollow else "none",
            alpha=marker.get("opacity"),
            zorder=3,
        )
    if "text" in trace["mode"]:
        for place, words in zip(zip(x, y, strict=True), trace["text"], strict=True):
            colour = _rgba(trace["textfont"]["color"])
            axes.annotate(words, place, xytext=(4, -10), textcoords="offset points", color=colour, fontsize=8)


def _draw_heatmap(axes: Axes, trace: Row) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patheffects import withStroke

    values = np.array(trace["z"], dtype=float)
    scale = LinearSegmentedColormap.from_list("", [(place, _rgba(colour)) for place, colour in trace["colorscale"]])
    axes.imshow(values, cmap=scale, vmin=trace["zmin"], vmax=trace["zmax"], aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = axes.text(x, y, trace["text"][y][x], ha="center", va="center", fontsize=9, color="white")
            # Legible on every colour, whatever is behind a half transparent one.
            text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    axes.set_xticks(range(len(trace["x"])), trace["x"], rotation=20)
    axes.set_yticks(range(len(trace["y"])), trace["y"])


def _rgba(colour: str) -> Any:
    """Plotly's `#rrggbb` or `rgba(…)` as matplotlib takes it."""
    numbers = re.fullmatch(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", colour)
    return (*(int(part) / 255 for part in numbers.groups()[:3]), float(numbers[4])) if numbers else colour
