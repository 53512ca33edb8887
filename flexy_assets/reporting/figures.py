"""One figure for pages, notebooks and pictures: its words, and the traces and axes that Plotly draws.

`data` and `layout` are Plotly's JSON. Pages draw them with `static/plots.js`, notebooks with Plotly's package, and
`static_images` makes a picture of them for Dagster's UI. A trace whose `meta` is "ink" or "band" takes the colour of
text around it. Texts from outside are escaped: Plotly reads a little HTML in names and hover texts.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from flexy_assets.reporting.plot_style import BAND_OPACITY, COLOURS, INK, translucent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One plot; `caption` says in a sentence what is drawn."""

    title: str
    caption: str
    data: list[Row]
    layout: Row

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The figure in a notebook."""
        return plotly_figure([self])._repr_mimebundle_(**options)


def plotly_figure(figures: Sequence[Figure], columns: int = 2, height: int = 300) -> PlotlyFigure:
    """The figures side by side, `columns` in a row, as one of Plotly's; each row is `height` pixels high."""
    from plotly.subplots import make_subplots

    across = max(min(columns, len(figures)), 1)
    down = max(-(-len(figures) // across), 1)
    whole = make_subplots(down, across, subplot_titles=[figure.title for figure in figures])
    shown: set[str] = set()
    for index, figure in enumerate(figures):
        row, column = index // across + 1, index % across + 1
        for trace in deepcopy(figure.data):
            # A name is in the legend once.
            name = trace.get("name")
            legend = {"showlegend": bool(name) and name not in shown, "legendgroup": name}
            shown |= {name} if name else set()
            whole.add_trace(in_ink(trace) | (legend if trace["type"] == "scatter" else {}), row, column)
        for axis, update in (("xaxis", whole.update_xaxes), ("yaxis", whole.update_yaxes)):
            update(figure.layout.get(axis, {}), row=row, col=column)
    return whole.update_layout(height=height * down + 60, template="plotly_white", margin={"t": 40, "b": 40})


def in_ink(trace: Row, ink: str = INK) -> Row:
    """The trace with the colour of text where its `meta` asks for it."""
    if trace.get("meta") == "band":
        return trace | {"fillcolor": translucent(ink, BAND_OPACITY)}
    if trace.get("meta") == "ink":
        part = "line" if "line" in trace else "marker"
        return trace | {part: trace[part] | {"color": ink}}
    return trace


def assign_colours(values: pl.Series) -> dict[str, str]:
    """A colour for each of the first distinct values."""
    return dict(zip(values.unique(maintain_order=True), COLOURS, strict=False))


def rounded(values: pl.Series, digits: int = 5) -> list[float | None]:
    """The values to so many significant digits: more only make a page heavy."""
    return values.cast(pl.Float64).round_sig_figs(digits).to_list()


def scatter_trace(x: Sequence[Any], y: Sequence[Any], mode: str = "markers", **settings: Any) -> Row:
    """Plotly's scatter of these points; `mode` names what is drawn, `settings` are its other keys."""
    return {"type": "scatter", "mode": mode, "x": x, "y": y, **settings}


def band_traces(
    x: pl.Series, mean: pl.Series, low: pl.Series, high: pl.Series, colour: str = "", name: str = ""
) -> list[Row]:
    """A line through the means, and the band of their intervals below it; in ink without a colour."""
    places, bottom, middle, top = (rounded(values) for values in (x, low, mean, high))
    outline = places + places[::-1], top + bottom[::-1]
    band = scatter_trace(*outline, "lines", fill="toself", line={"width": 0}, hoverinfo="skip")
    line = scatter_trace(places, middle, "lines", line={"width": 2}, hoverinfo="skip")
    if not colour:
        return [band | {"meta": "band"}, line | {"meta": "ink"}]
    line |= {"line": {"width": 2, "color": colour}, "name": html.escape(name)}
    return [band | {"fillcolor": translucent(colour)}, line]


def interval_trace(places: Sequence[Any], low: pl.Series, high: pl.Series, colour: str, vertical: bool = False) -> Row:
    """A thick bar from `low` to `high` at each place, across or `vertical`."""
    along = [each for place in places for each in (place, place, None)]
    ends = [each for pair in zip(rounded(low), rounded(high), strict=True) for each in (*pair, None)]
    x, y = (along, ends) if vertical else (ends, along)
    line = {"color": translucent(colour, 2 * BAND_OPACITY), "width": 2 if vertical else 4}
    return scatter_trace(x, y, "lines", line=line, hoverinfo="skip")


def interval_figure(
    title: str,
    axis: Row,
    table: pl.DataFrame,
    column: str,
    labels: Mapping[str, str],
    value: str,
    colours: Mapping[str, str],
    by: str = "engine",
) -> Figure:
    """The values of a table with their `low` to `high`: a line a name in `column`, from the top.

    Rows of one name lie side by side, coloured by the column `by`; `labels` are the names in their order.
    """
    places = {name: place for place, name in enumerate(labels)}
    # Where a name has one row, nothing needs room.
    offset = 0.16 if table[column].n_unique() < table.height else 0.0
    traces = []
    for number, (name, colour) in enumerate(colours.items()):
        rows = table.filter(pl.col(by) == name)
        shift = offset * (number - (len(colours) - 1) / 2)
        y = [places[row] + shift for row in rows[column]]
        marker, hover = {"size": 7, "color": colour}, "%{x:.4~g}<extra></extra>"
        dots = scatter_trace(rounded(rows[value]), y, name=html.escape(name), marker=marker, hovertemplate=hover)
        traces += [interval_trace(y, rows["low"], rows["high"], colour), dots]
    names = {"tickvals": [*places.values()], "ticktext": [*labels.values()], "range": [len(labels) - 0.5, -0.5]}
    return Figure(title, "Dots with their 95 % intervals.", traces, {"xaxis": axis, "yaxis": names})
