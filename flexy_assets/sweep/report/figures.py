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

from flexy_assets.reporting.html import format_number
from flexy_assets.sweep.analysis import (
    METRIC_LABELS,
    SETTING_LABELS,
    TARGET_LABELS,
    AnalysisTables,
    effective_guidance,
    tried_images,
)
from flexy_assets.sweep.report.points import Numbers
from flexy_assets.sweep.report.summary import format_setting

# Both scales keep to middle lightness, so that they can be read on white and on black.
SEQUENTIAL: Final = ("#2f6fb7", "#7a67c7", "#c25c9c", "#e2705a", "#e6a23c")
# Half transparent, because figures are written on it.
DIVERGING: Final = ((0.0, "rgba(59,125,196,0.55)"), (0.5, "rgba(128,128,128,0.1)"), (1.0, "rgba(217,101,59,0.55)"))

DOMINATED_COLOUR: Final = "#8a8a84"

Row = dict[str, Any]


@dataclass(frozen=True)
class ReportFigure:
    """One plot: its words, and Plotly's `data` and `layout`; `key` is its element's id.

    `part` is where it stands: "best", "response", "surface" or "correlations". `points` are the images drawn below
    `data`: their `engine` and the columns `x` and `y`; none where empty.
    """

    part: str
    key: str
    title: str
    caption: str
    data: list[Row]
    layout: Row
    points: Row


def report_figures(key: str, rows: pl.DataFrame, axes: Mapping[str, Row], tables: AnalysisTables) -> list[ReportFigure]:
    """The plots of one engine, whose images are `rows`, on the axes of all engines (`axes_of`)."""
    placed = rows.drop_nulls(tried_images(rows))
    found = []
    if placed.height:
        best = {row["target"]: row for row in tables.spots.iter_rows(named=True) if row["steps"] is not None}
        both = placed["steps"].n_unique() > 1 and np.ptp(guidance_axis_range(placed)) > 0
        for target in ("overall", *METRIC_LABELS):
            surface = tables.response.filter(target=target, curve="surface").drop_nulls("predicted")
            if target in best and both and surface.height:
                found.append(_surface(f"{key}-{target}-surface", target, surface, best[target], axes))
        front = tables.front.filter(target="overall").drop_nulls("predicted")
        if "overall" in best and front["on_front"].sum() > 1:
            found.append(_front(f"{key}-front", front, axes))
        # What moves comes first.
        for metric in sorted(METRIC_LABELS, key=lambda metric: metric not in best):
            if placed[metric].count():
                found += _responses(f"{key}-{metric}", placed, metric, axes, tables.response, metric not in best)
        if placed["elapsed_ms"].count():
            found.append(_seconds(f"{key}-seconds", placed, axes, tables.times))
    if tables.correlations["spearman"].count():
        found.append(_correlation_map(f"{key}-correlations", tables.correlations))
    return found


def share_colour_scale(found: Sequence[ReportFigure]) -> None:
    """Give the surfaces of one target one scale of colours, so that engines can be compared by eye."""
    surfaces: dict[str, list[Row]] = {}
    for figure in found:
        if figure.data and figure.data[0]["type"] == "contour":
            surfaces.setdefault(figure.title, []).append(figure.data[0])
    for traces in surfaces.values():
        z = [value for trace in traces for line in trace["z"] for value in line if value is not None]
        for trace in traces:
            trace |= {"zmin": min(z), "zmax": max(z), "zauto": False}


def axis_ranges(overall: pl.DataFrame) -> dict[str, Row]:
    """Plotly's axis by column, the same for all engines: steps, guidance, seconds and each metric."""
    steps = _steps_axis(overall)
    found = {"steps": steps} if steps else {}
    columns = {**METRIC_LABELS, "overall": "Overall, SD", "guidance": "Guidance", "seconds": "Seconds an image"}
    values = overall.with_columns(seconds=pl.col("elapsed_ms") / 1000, guidance=pl.col("guidance").clip(1))
    for column, label in columns.items():
        there = _numbers(values, column)
        if there.size:
            found[column] = {"title": {"text": label}, "range": _padded(there)}
    return found


def value_range(values: Numbers) -> tuple[float, float]:
    """The lowest and the highest, or 1 and 1 of nothing."""
    return (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)


def _numbers(rows: pl.DataFrame, name: str) -> Numbers:
    return rows[name].drop_nulls().cast(pl.Float64).to_numpy()


def guidance_axis_range(rows: pl.DataFrame) -> tuple[float, float]:
    """The lowest and the highest effective guidance of these images."""
    return value_range(effective_guidance(_numbers(rows, "guidance")))


def _steps_axis(rows: pl.DataFrame) -> Row:
    steps = _numbers(rows, "steps").clip(1)
    if not steps.size:
        return {}
    low, high = value_range(steps)
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


def _points(rows: pl.DataFrame, x: str, y: str) -> Row:
    return {"engine": rows["engine"][0], "x": x, "y": y}


def _responses(
    key: str, rows: pl.DataFrame, metric: str, axes: Mapping[str, Row], response: pl.DataFrame, flat: bool
) -> list[ReportFigure]:
    """A metric's images by steps and, where that varies, by guidance: each with the mean and its band."""
    guided = np.ptp(guidance_axis_range(rows)) > 0
    found = []
    for along, other, suffix in (("steps", "guidance", ""), ("guidance", "steps", "-guidance")):
        if along == "guidance" and not guided:
            continue
        curve = response.filter(target=metric, curve=along).drop_nulls("predicted")
        coloured = guided and along == "steps"
        caption = f"One dot an image{', coloured by guidance' if coloured else ''}."
        if curve.height > 1:
            over = f" over the {other} tried" if along == "guidance" or guided else ""
            caption += f" Line: the mean{over}; band: its 95 % interval"
            caption += ". It cannot be told from flat." if flat else "."
        layout = {"xaxis": axes[along], "yaxis": axes[metric]}
        title = f"{METRIC_LABELS[metric]} by {along}"
        traces = _band(curve, along) if curve.height > 1 else []
        found.append(
            ReportFigure("response", key + suffix, title, caption, traces, layout, _points(rows, along, metric))
        )
    return found


def _band(curve: pl.DataFrame, along: str) -> list[Row]:
    """A line through the expectations and what its 95 % band covers."""
    x, low, middle, high = (_short(curve[name]) for name in (along, "low", "predicted", "high"))
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": x + x[::-1],
        "y": high + low[::-1],
        "fill": "toself",
        "line": {"width": 0},
        "meta": "band",
        "hoverinfo": "skip",
    }
    line = {"type": "scatter", "mode": "lines", "x": x, "y": middle, "line": {"width": 2}}
    return [band, line | {"meta": "ink", "hoverinfo": "skip"}]


def _short(values: pl.Series) -> list[float]:
    return values.cast(pl.Float64).round_sig_figs(5).to_list()


def _scale(colours: Sequence[str]) -> list[tuple[float, str]]:
    return [(index / (len(colours) - 1), colour) for index, colour in enumerate(colours)]


def _surface(key: str, target: str, surface: pl.DataFrame, best: Row, axes: Mapping[str, Row]) -> ReportFigure:
    """The expectation at each setting that has images near, the region that cannot be told from the best, and that."""
    steps, guidance = (surface[name].unique().sort().to_list() for name in ("steps", "guidance"))
    cells = {(row["steps"], row["guidance"]): row for row in surface.iter_rows(named=True)}
    region = {(cell["steps"], cell["guidance"]) for cell in best["region"]}
    unit = " SD" if target == "overall" else ""
    z: list[list[float | None]] = []
    words: list[list[str]] = []
    for g in guidance:
        line = [cells[s, g] for s in steps]
        z.append([float(f"{row['predicted']:.5g}") if row["images"] else None for row in line])
        words.append([f"<b>{format_number(row['predicted'])}{unit}</b> ({_range(row)})" for row in line])
    predicted = {
        "type": "contour",
        "x": steps,
        "y": guidance,
        "z": z,
        "text": words,
        "colorscale": _scale(SEQUENTIAL),
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0.5, "color": "rgba(255,255,255,0.5)"},
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "hovertemplate": "%{x:.0f} steps, guidance %{y:.1f}<br>%{text}<extra></extra>",
    }
    inside = np.array([[(s, g) in region for s in steps] for g in guidance], dtype=float)
    outline = {
        "type": "contour",
        # A rim of nothing closes the line where the region reaches the edge.
        "x": [steps[0] * 0.999, *steps, steps[-1] * 1.001],
        "y": [guidance[0] - 0.001, *guidance, guidance[-1] + 0.001],
        "z": np.pad(inside, 1).tolist(),
        "contours": {"coloring": "none", "start": 0.5, "end": 0.5, "size": 1},
        "line": {"width": 2.5, "smoothing": 0},
        "showscale": False,
        "meta": "ink",
        "hoverinfo": "skip",
    }
    spot = {
        "type": "scatter",
        "mode": "markers",
        "x": [best["steps"]],
        "y": [best["guidance"]],
        "marker": {"symbol": "circle-open", "size": 15, "line": {"width": 3}},
        "meta": "ink",
        "hovertemplate": f"{format_setting(best)}<extra></extra>",
    }
    caption = (
        f"Outlined: cannot be told from the best ({best['region_share']:.0%} of what was tried). "
        f"Ring: the best, {format_setting(best)}, predicted {format_number(best['predicted'])}{unit} ({_range(best)})."
    )
    if any(value is None for line in z for value in line):
        caption += " Blank: no image near."
    layout = {"xaxis": {**axes["steps"], "showgrid": False}, "yaxis": {**axes["guidance"], "showgrid": False}}
    part = "best" if target == "overall" else "surface"
    return ReportFigure(
        part, key, f"{TARGET_LABELS[target]}: predicted", caption, [predicted, outline, spot], layout, {}
    )


def _range(row: Row) -> str:
    return f"{format_number(row['low'])} to {format_number(row['high'])}"


def _seconds(key: str, rows: pl.DataFrame, axes: Mapping[str, Row], times: pl.DataFrame) -> ReportFigure:
    caption = f"One dot an image{', coloured by guidance' if rows['guidance'].count() else ''}."
    row = next(times.drop_nulls("a_step").iter_rows(named=True), None)
    if row:
        guided = (
            f" ({format_number(row['a_step'] + row['guided_step'], 2)} with guidance)" if row["guided_step"] else ""
        )
        base, step = format_number(max(row["base"], 0), 2), format_number(row["a_step"], 2)
        caption += f" An image takes {base} s and {step} s a step{guided}."
    # Time is a straight line in steps.
    layout = {"xaxis": {"title": {"text": "Steps"}}, "yaxis": axes["seconds"]}
    return ReportFigure("response", key, "Seconds by steps", caption, [], layout, _points(rows, "steps", "seconds"))


def _front(key: str, front: pl.DataFrame, axes: Mapping[str, Row]) -> ReportFigure:
    """Quality against seconds, or steps where nothing was timed; sure points are large and plain."""
    timed = bool(front["seconds"].count())
    x = "seconds" if timed else "steps"

    def trace(points: pl.DataFrame) -> Row:
        words = [
            f"{format_setting(row)}{', ' + format_number(row['seconds'], 2) + ' s' if timed else ''}<br>"
            f"<b>{format_number(row['predicted'], 2)} SD</b> ({_range(row)})<br>"
            f"on the front in {row['stays']:.0%} of resamples"
            for row in points.iter_rows(named=True)
        ]
        return {
            "type": "scatter",
            "x": _short(points[x]),
            "y": _short(points["predicted"]),
            "text": words,
            "hovertemplate": "%{text}<extra></extra>",
        }

    on, off = front.filter("on_front").sort(x), front.filter(~pl.col("on_front"))
    others = trace(off) | {
        "mode": "markers",
        "marker": {"symbol": "circle-open", "size": (5 + 11 * off["stays"]).to_list(), "color": DOMINATED_COLOUR},
    }
    beaten = trace(on) | {
        "mode": "lines+markers",
        "line": {"color": SEQUENTIAL[0], "width": 2},
        "marker": {
            "size": (5 + 11 * on["stays"]).to_list(),
            "opacity": (0.35 + 0.65 * on["stays"]).to_list(),
            "color": SEQUENTIAL[0],
        },
        "error_y": {
            "symmetric": False,
            "array": _short(on["high"] - on["predicted"]),
            "arrayminus": _short(on["predicted"] - on["low"]),
            "color": "rgba(47,111,183,0.45)",
            "thickness": 1.5,
            "width": 3,
        },
    }
    caption = (
        "Joined: settings that no other beats in both, with 95 % intervals. The larger a dot, the more often it stays "
        "so when the images are resampled; hollow ones are on the front only then."
    )
    title = f"Quality against {x}"
    across = "Seconds an image" if timed else "Steps"
    # As far as images reach: where there are few, an interval may be ten times that.
    layout = {"xaxis": {"title": {"text": across}}, "yaxis": axes["overall"]}
    return ReportFigure("best", key, title, caption, [others, beaten], layout, {})


def _correlation_map(key: str, correlations: pl.DataFrame) -> ReportFigure:
    pairs = {(row["left"], row["right"]): row for row in correlations.iter_rows(named=True)}
    labels = METRIC_LABELS | {
        name: label for name, label in SETTING_LABELS.items() if name in set(correlations["left"])
    }
    z: list[list[float | None]] = []
    words: list[list[str]] = []
    for left in reversed(labels):
        found = [pairs.get((left, right)) or pairs.get((right, left)) for right in METRIC_LABELS]
        z.append([row["spearman"] if row else None for row in found])
        words.append([_pair_words(row) if row else "" for row in found])
    trace = {
        "type": "heatmap",
        "x": list(METRIC_LABELS.values()),
        "y": [labels[left] for left in reversed(labels)],
        "z": z,
        "zmin": -1,
        "zmax": 1,
        "colorscale": [list(stop) for stop in DIVERGING],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "text": [[format_number(value, 2) if value is not None else "" for value in row] for row in z],
        "texttemplate": "%{text}",
        "hovertext": words,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "hoverongaps": False,
    }
    layout = {"xaxis": {"showgrid": False}, "yaxis": {"showgrid": False, "automargin": True}}
    caption = "Spearman’s ρ between images; point at a cell for its 95 % intervals, or open the table below."
    return ReportFigure("correlations", key, "Which metrics and settings move together", caption, [trace], layout, {})


def _pair_words(row: Row) -> str:
    labels = METRIC_LABELS | SETTING_LABELS
    lines = [f"{labels[row['left']]} and {labels[row['right']]}, {row['n']:,} images"]
    for name, label in (("spearman", "Spearman"), ("pearson", "Pearson")):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        lines.append(f"{label} {format_number(row[name], 2)} ({format_number(low, 2)} to {format_number(high, 2)})")
    # Plotly reads a little HTML in labels and hover texts.
    return "<br>".join(html.escape(line) for line in lines)
