"""The tables of edits as figures, for the report, the notebook and Dagster's UI."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from flexy_assets.edits.labels import format_denoises, method_name, metric_title
from flexy_assets.reporting.figures import Figure, Row, interval_trace, rounded
from flexy_assets.reporting.formatting import format_number
from flexy_assets.reporting.plot_style import COLOURS
from flexy_assets.reporting.static_images import render_webp

SYMBOLS = ("circle", "circle-open")  # of the first method and the others: they differ not by colour alone


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    return {method: COLOURS[place % len(COLOURS)] for place, method in enumerate(methods)}


def scores_by_budget(
    levels: pl.DataFrame, metric: str, colours: Mapping[str, str], steps: int | None = None, note: str = ""
) -> Figure:
    """Return a metric's mean and 95 % interval over budgets; `steps` of a full denoise are None where they differ."""
    rows = levels.filter(metric=metric).drop_nulls("mean")
    caption = f"Mean over tasks with its 95 % interval.{note}"
    return _budget_figure((metric_title(metric), caption), rows, ("mean", "low", "high"), colours, steps)


def gain_by_budget(
    comparison: pl.DataFrame, metric: str, method: str, rival: str, colours: Mapping[str, str], steps: int | None = None
) -> Figure | None:
    """What a method gains over its rival at equal budgets, with its 95 % interval; None where it was not compared."""
    equal = comparison.filter(pl.col("budget") == pl.col("rival_budget"), metric=metric, method=method, rival=rival)
    rows = equal.drop_nulls("gain")
    if not rows.height:
        return None
    ours = method_name(method)
    title = f"{metric_title(metric)}: {ours} against {method_name(rival)}"
    caption = f"Mean gain over tasks with its 95 % interval; above 0 {ours} is better."
    figure = _budget_figure((title, caption), rows, ("gain", "gain_low", "gain_high"), colours, steps)
    figure.layout["yaxis"] |= {"zeroline": True, "rangemode": "tozero"}
    return figure


def plot_edit_comparison(levels: pl.DataFrame) -> bytes | None:
    """Each method's mean of each metric at each budget, with 95 % intervals; None where nothing was measured."""
    known = levels.drop_nulls("mean")
    colours = method_colours(known["method"].unique(maintain_order=True).to_list())
    panels = [scores_by_budget(known, metric, colours) for metric in known["metric"].unique(maintain_order=True)]
    return render_webp(panels, columns=4) if panels else None


def _budget_figure(
    texts: tuple[str, str], rows: pl.DataFrame, columns: Sequence[str], colours: Mapping[str, str], steps: int | None
) -> Figure:
    """Return a mean and its interval's ends (`columns`) over budgets; `texts` are the figure's title and caption."""
    budgets = rows["budget"].unique().sort().to_list()
    whole = steps if steps and not any(budget % steps for budget in budgets) else None
    traces: list[Row] = []
    drawn = {method: colour for method, colour in colours.items() if method in set(rows["method"])}
    for place, (method, colour) in enumerate(drawn.items()):
        line = rows.filter(method=method).sort("budget")
        mean, low, high = (line[name] for name in columns)
        # A little apart, so that two intervals at one budget do not overlap.
        x = [budget * 1.02 ** (2 * place - len(drawn) + 1) for budget in line["budget"]]
        words = [
            html.escape(f"{method_name(method)} at {format_denoises(budget, steps)}: {format_number(value)}")
            + ("" if bottom is None else f" ({format_number(bottom)} to {format_number(top)})")
            for budget, value, bottom, top in zip(line["budget"], mean, low, high, strict=True)
        ]
        traces.append(interval_trace(x, low.fill_null(mean), high.fill_null(mean), colour, vertical=True))
        marker = {"color": colour, "size": 8, "symbol": SYMBOLS[place > 0], "line": {"width": 2}}
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "x": x, "y": rounded(mean)}
            | {"name": html.escape(method_name(method)), "line": {"color": colour, "width": 1.5}, "marker": marker}
            | {"hovertext": words, "hovertemplate": "%{hovertext}<extra></extra>"}
        )
    ends = np.log10([budgets[0] / 1.15, budgets[-1] * 1.15]).round(4).tolist()
    marks = {"tickvals": budgets, "ticktext": [f"{budget // (whole or 1):,}" for budget in budgets]}
    across = {"title": {"text": "denoises" if whole else "denoising steps (NFE)"}, "type": "log", "range": ends} | marks
    return Figure(*texts, traces, {"xaxis": across, "yaxis": {}})
