"""Which plots the report shows of an engine, each with its words, on the axes of all engines.

A plot of images names columns of `points.point_data`, and the page's script draws the images that the filters leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from flexy_assets.reporting.figures import Figure, Row
from flexy_assets.reporting.plot_style import SEQUENTIAL
from flexy_assets.sweep import plots
from flexy_assets.sweep.analysis import METRIC_LABELS, AnalysisTables, effective_guidance, setting_names
from flexy_assets.sweep.report.points import Numbers


@dataclass(frozen=True)
class ReportFigure:
    """A figure in its place: `key` is its element's id, `part` is "best", "response", "surface" or "correlations".

    `points` are the images drawn below it: their `engine` and the columns `x` and `y`; none where empty.
    """

    part: str
    key: str
    figure: Figure
    points: Row


def report_figures(key: str, rows: pl.DataFrame, axes: Mapping[str, Row], tables: AnalysisTables) -> list[ReportFigure]:
    """Return the plots of one engine, whose images are `rows`, on the axes of all engines (`axis_ranges`)."""
    placed = rows.drop_nulls(setting_names(rows))
    figures = []
    if placed.height:
        best = {row["target"]: row for row in tables.spots.iter_rows(named=True) if row["steps"] is not None}
        both = placed["steps"].n_unique() > 1 and np.ptp(guidance_axis_range(placed)) > 0
        for target in ("overall", *METRIC_LABELS):
            surface = tables.response.filter(target=target, curve="surface").drop_nulls("predicted")
            if target in best and both and surface.height:
                part = "best" if target == "overall" else "surface"
                lead = best["value"] if target == "overall" else None
                figure = plots.predicted_surface(tables.response, best[target], axes, lead)
                figures.append(ReportFigure(part, f"{key}-{target}-surface", figure, {}))
        front = tables.front.filter(target="overall").drop_nulls("predicted")
        if "overall" in best and front["on_front"].sum() > 1:
            # As far as images reach: where there are few, an interval may be ten times that.
            figure = plots.pareto_front(front, {rows["engine"][0]: SEQUENTIAL[0]}, axes["overall"])
            figures.append(ReportFigure("best", f"{key}-front", figure, {}))
        # Metrics with a significant response come first.
        for metric in sorted(METRIC_LABELS, key=lambda metric: metric not in best):
            if placed[metric].count():
                figures += _responses(f"{key}-{metric}", placed, metric, axes, tables.response, metric not in best)
        if placed["elapsed_ms"].count():
            figures.append(_seconds(f"{key}-seconds", placed, axes))
    if tables.correlations["spearman"].count():
        correlations = plots.correlation_map(tables.correlations)
        figures.append(ReportFigure("correlations", f"{key}-correlations", correlations, {}))
    return figures


def share_colour_scale(figures: Sequence[ReportFigure]) -> None:
    """Give the surfaces of one target one scale of colours, so that engines can be compared by eye."""
    surfaces: dict[str, list[Row]] = {}
    for figure in (each.figure for each in figures):
        if figure.data and figure.data[0]["type"] == "contour":
            surfaces.setdefault(figure.title, []).append(figure.data[0])
    for traces in surfaces.values():
        z = [value for trace in traces for line in trace["z"] for value in line if value is not None]
        for trace in traces:
            trace |= {"zmin": min(z), "zmax": max(z), "zauto": False}


def axis_ranges(overall: pl.DataFrame) -> dict[str, Row]:
    """Return Plotly's axis by column, the same for all engines: steps, guidance, seconds and each metric."""
    steps = plots.steps_axis(overall["steps"])
    axes = {"steps": steps} if steps else {}
    columns = {**METRIC_LABELS, "overall": "Overall, SD", "guidance": "Guidance", "seconds": "Seconds an image"}
    values = overall.with_columns(seconds=pl.col("elapsed_ms") / 1000, guidance=pl.col("guidance").clip(1))
    for column, label in columns.items():
        known = _numbers(values, column)
        if known.size:
            axes[column] = plots.titled_axis(label) | {"range": plots.padded_range(known)}
    return axes


def _numbers(rows: pl.DataFrame, name: str) -> Numbers:
    return rows[name].drop_nulls().cast(pl.Float64).to_numpy()


def guidance_axis_range(rows: pl.DataFrame) -> tuple[float, float]:
    """Return the lowest and the highest effective guidance of these images, or 1 and 1 without any."""
    values = effective_guidance(_numbers(rows, "guidance"))
    return (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)


def _responses(
    key: str, rows: pl.DataFrame, metric: str, axes: Mapping[str, Row], response: pl.DataFrame, flat: bool
) -> list[ReportFigure]:
    """Return a metric's images by steps and, where that varies, by guidance: each with the mean and its band."""
    guided = np.ptp(guidance_axis_range(rows)) > 0
    figures = []
    for along, other, suffix in (("steps", "guidance", ""), ("guidance", "steps", "-guidance")):
        if along == "guidance" and not guided:
            continue
        figure = plots.response_curve(response, metric, along, {rows["engine"][0]: ""}, axes)
        caption = f"One dot an image{', coloured by guidance' if guided and along == 'steps' else ''}."
        if figure.data:
            over = f" over the {other} tried" if along == "guidance" or guided else ""
            caption += f" Line: the mean{over}; band: its 95 % interval."
            caption += " Not significantly different from flat." if flat else ""
        named = replace(figure, title=f"{METRIC_LABELS[metric]} by {along}", caption=caption)
        points = {"engine": rows["engine"][0], "x": along, "y": metric}
        figures.append(ReportFigure("response", key + suffix, named, points))
    return figures


def _seconds(key: str, rows: pl.DataFrame, axes: Mapping[str, Row]) -> ReportFigure:
    caption = f"One dot an image{', coloured by guidance' if rows['guidance'].count() else ''}."
    # Time is a straight line in steps.
    layout = {"xaxis": plots.titled_axis("Steps"), "yaxis": axes["seconds"]}
    points = {"engine": rows["engine"][0], "x": "steps", "y": "seconds"}
    return ReportFigure("response", key, Figure("Seconds by steps", caption, [], layout), points)
