"""The report's plots: each one's words and what Plotly draws.

A plot of images names columns of `points.data`, and the page's script fills in the points that the filters leave.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from flexy_assets.page import number
from flexy_assets.sweep.analysis import METRICS, SETTINGS, effective_guidance, predict, tried
from flexy_assets.sweep.answer import setting
from flexy_assets.sweep.points import Numbers

# Both scales keep to middle lightness, so that they can be read on white and on black.
SEQUENTIAL: Final = ("#2f6fb7", "#7a67c7", "#c25c9c", "#e2705a", "#e6a23c")
# Half transparent, because figures are written on it.
DIVERGING: Final = ((0.0, "rgba(59,125,196,0.55)"), (0.5, "rgba(128,128,128,0.1)"), (1.0, "rgba(217,101,59,0.55)"))

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One plot: its words, and Plotly's `data` and `layout`; `key` is its element's id.

    `points` are the images drawn below `data`: their `engine` and the columns `x` and `y`; none where empty.
    """

    key: str
    title: str
    caption: str
    data: list[Row]
    layout: Row
    points: Row


def figures(
    key: str,
    rows: pl.DataFrame,
    axes: Mapping[str, Row],
    correlations: pl.DataFrame,
    regression: pl.DataFrame,
    spots: pl.DataFrame,
) -> list[Figure]:
    """The plots of one engine, whose images are `rows`, on the axes of all engines (`axes_of`)."""
    placed = rows.drop_nulls(tried(rows))
    found = []
    if placed.height:
        chosen = {row["metric"]: row for row in regression.filter("chosen").iter_rows(named=True)}
        best = {row["target"]: row for row in spots.iter_rows(named=True) if row["steps"] is not None}
        moving = [metric for metric in METRICS if metric in best and metric in chosen]
        # What moves comes first, in pairs of points and surface.
        for metric in sorted(METRICS, key=lambda metric: metric not in moving):
            if not placed[metric].count():
                continue
            lines = [_model_line(placed, chosen[metric], best[metric]["guidance"])] if metric in moving else []
            found.append(_scatter(f"{key}-{metric}", placed, metric, METRICS[metric], axes, lines))
            if metric in moving and placed["steps"].n_unique() > 1 and placed["guidance"].n_unique() > 1:
                found.append(_surface(f"{key}-{metric}-surface", placed, metric, chosen[metric], best[metric], axes))
        if placed["elapsed_ms"].count():
            figure = _scatter(f"{key}-seconds", placed, "seconds", "Seconds an image", axes, [])
            # Time is a straight line in steps.
            figure.layout["xaxis"] = {"title": {"text": "Steps"}}
            found.append(figure)
    if correlations["spearman"].count():
        found.append(_correlation_map(f"{key}-correlations", correlations))
    return found


def with_common_colours(found: Sequence[Figure]) -> None:
    """Give the surfaces of one metric one scale of colours, so that engines can be compared by eye."""
    surfaces: dict[str, list[Row]] = {}
    for figure in found:
        for trace in figure.data:
            if trace["type"] == "contour":
                surfaces.setdefault(figure.title, []).append(trace)
    for traces in surfaces.values():
        z = np.array([trace["z"] for trace in traces])
        for trace in traces:
            trace |= {"zmin": float(z.min()), "zmax": float(z.max()), "zauto": False}


def axes_of(overall: pl.DataFrame) -> dict[str, Row]:
    """Plotly's axis by column, the same for all engines: steps, guidance, seconds and each metric."""
    steps = _steps_axis(overall)
    found = {"steps": steps} if steps else {}
    columns = {**METRICS, "overall": "Overall, SD", "guidance": "Guidance", "seconds": "Seconds an image"}
    values = overall.with_columns(seconds=pl.col("elapsed_ms") / 1000, guidance=pl.col("guidance").clip(1))
    for column, label in columns.items():
        there = _numbers(values, column)
        if there.size:
            found[column] = {"title": {"text": label}, "range": _padded(there)}
    return found


def ends(values: Numbers) -> tuple[float, float]:
    """The lowest and the highest, or 1 and 1 of nothing."""
    return (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)


def _numbers(rows: pl.DataFrame, name: str) -> Numbers:
    return rows[name].drop_nulls().cast(pl.Float64).to_numpy()


def guidance_ends(rows: pl.DataFrame) -> tuple[float, float]:
    """The lowest and the highest effective guidance of these images."""
    return ends(effective_guidance(_numbers(rows, "guidance")))


def _steps_axis(rows: pl.DataFrame) -> Row:
    steps = _numbers(rows, "steps").clip(1)
    if not steps.size:
        return {}
    low, high = ends(steps)
    ticks = sorted({low, high, *(float(t) for t in (1, 2, 4, 8, 16, 32, 64, 128, 256) if low * 1.3 < t < high / 1.3)})
    return {
        "title": {"text": "Steps"},
        "type": "log",
        "range": _padded(np.log10(steps)),
        "tickvals": ticks,
        "ticktext": [f"{tick:.0f}" for tick in ticks],
    }


def _padded(values: Numbers) -> list[float]:
    """A range with a little room, so that a mark on its edge stays whole."""
    room = 0.04 * float(np.ptp(values)) or 0.05 * abs(float(values[0])) or 0.1
    return [round(float(values.min()) - room, 6), round(float(values.max()) + room, 6)]


def _scatter(
    key: str, rows: pl.DataFrame, column: str, label: str, axes: Mapping[str, Row], lines: list[Row]
) -> Figure:
    caption = "One dot an image." if not rows["guidance"].count() else "One dot an image, coloured by guidance."
    layout = {"xaxis": axes["steps"], "yaxis": axes[column]}
    points = {"engine": rows["engine"][0], "x": "steps", "y": column}
    return Figure(key, f"{label} by steps", caption, lines, layout, points)


def _scale(colours: Sequence[str]) -> list[tuple[float, str]]:
    return [(index / (len(colours) - 1), colour) for index, colour in enumerate(colours)]


def _model_line(rows: pl.DataFrame, model: Row, guidance: float | None) -> Row:
    steps = np.geomspace(*ends(_numbers(rows, "steps").clip(1)), 40)
    predicted = predict(model, steps, np.nan if guidance is None else guidance)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": steps.round(3).tolist(),
        "y": predicted.round(5).tolist(),
        "line": {"width": 2},
        "meta": "ink",
        "hoverinfo": "skip",
    }


def _surface(key: str, rows: pl.DataFrame, metric: str, model: Row, best: Row, axes: Mapping[str, Row]) -> Figure:
    steps = np.geomspace(*ends(_numbers(rows, "steps").clip(1)), 32)
    guidance = np.linspace(*guidance_ends(rows), 32)
    surface = {
        "type": "contour",
        "x": steps.round(3).tolist(),
        "y": guidance.round(3).tolist(),
        "z": predict(model, steps[None, :], guidance[:, None]).round(5).tolist(),
        "colorscale": _scale(SEQUENTIAL),
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0.5, "color": "rgba(255,255,255,0.5)"},
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "hovertemplate": "%{x:.0f} steps, guidance %{y:.1f}<br><b>%{z:.4~g}</b><extra></extra>",
    }
    spot = {
        "type": "scatter",
        "mode": "markers",
        "x": [best["steps"]],
        "y": [best["guidance"]],
        "marker": {"symbol": "circle-open", "size": 15, "line": {"width": 3}},
        "meta": "ink",
        "hovertemplate": f"{setting(best)}<extra></extra>",
    }
    caption = (
        f"By the {model['model']} model (R² {number(model['r2'], 2)}); the ring is its best setting, "
        f"{setting(best)}, predicted {number(best['predicted'])}."
    )
    layout = {"xaxis": {**axes["steps"], "showgrid": False}, "yaxis": {**axes["guidance"], "showgrid": False}}
    return Figure(key, f"{METRICS[metric]}: predicted", caption, [surface, spot], layout, {})


def _correlation_map(key: str, correlations: pl.DataFrame) -> Figure:
    pairs = {(row["left"], row["right"]): row for row in correlations.iter_rows(named=True)}
    labels = METRICS | {name: label for name, label in SETTINGS.items() if name in set(correlations["left"])}
    z: list[list[float | None]] = []
    words: list[list[str]] = []
    for left in reversed(labels):
        found = [pairs.get((left, right)) or pairs.get((right, left)) for right in METRICS]
        z.append([row["spearman"] if row else None for row in found])
        words.append([_pair_words(row) if row else "" for row in found])
    trace = {
        "type": "heatmap",
        "x": list(METRICS.values()),
        "y": [labels[left] for left in reversed(labels)],
        "z": z,
        "zmin": -1,
        "zmax": 1,
        "colorscale": [list(stop) for stop in DIVERGING],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "text": [[number(value, 2) if value is not None else "" for value in row] for row in z],
        "texttemplate": "%{text}",
        "hovertext": words,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "hoverongaps": False,
    }
    layout = {"xaxis": {"showgrid": False}, "yaxis": {"showgrid": False, "automargin": True}}
    caption = "Spearman’s ρ between images; point at a cell for its 95 % intervals, or open the table below."
    return Figure(key, "What moves together", caption, [trace], layout, {})


def _pair_words(row: Row) -> str:
    labels = METRICS | SETTINGS
    lines = [f"{labels[row['left']]} and {labels[row['right']]}, {row['n']:,} images"]
    for name, label in (("spearman", "Spearman"), ("pearson", "Pearson")):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        lines.append(f"{label} {number(row[name], 2)} ({number(low, 2)} to {number(high, 2)})")
    # Plotly reads a little HTML in labels and hover texts.
    return "<br>".join(html.escape(line) for line in lines)
