"""The sweep's tables as figures, for the report, the notebook and Dagster's UI.

The first functions draw one panel each. The `plot_…` functions take the table of the asset they are named after and
return a picture of all its panels as WebP bytes, or None where there is nothing to draw. An engine has one colour in
all panels; of more engines than there are colours the first are drawn.
"""

import html
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from flexy_assets.reporting import plot_style
from flexy_assets.reporting.figures import (
    Figure,
    Row,
    assign_colours,
    band_traces,
    interval_figure,
    interval_trace,
    rounded,
    scatter_trace,
)
from flexy_assets.reporting.formatting import format_number
from flexy_assets.reporting.static_images import render_webp
from flexy_assets.sweep.analysis import COLUMN_LABELS, METRIC_LABELS, SETTING_LABELS, TARGET_LABELS, effective_guidance

# Panels


def titled_axis(title: str) -> Row:
    return {"title": {"text": title}}


def steps_axis(values: pl.Series, title: str = "Steps") -> Row:
    """A logarithmic axis over these numbers of steps, marked at their ends and at powers of two; empty without any."""
    steps = values.drop_nulls().cast(pl.Float64).clip(1).to_numpy()
    if not steps.size:
        return {}
    low, high = float(steps.min()), float(steps.max())
    ticks = sorted({low, high, *(2.0**power for power in range(9) if low * 1.3 < 2.0**power < high / 1.3)})
    marks = {"tickvals": ticks, "ticktext": [f"{tick:.0f}" for tick in ticks]}
    return titled_axis(title) | {"type": "log", "range": padded_range(np.log10(steps))} | marks


def padded_range(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """The lowest and highest with a little room, so that a mark on the edge stays whole."""
    room = 0.04 * float(np.ptp(values)) or 0.05 * abs(float(values[0])) or 0.1
    return [round(float(values.min()) - room, 6), round(float(values.max()) + room, 6)]


def response_curve(
    response: pl.DataFrame, target: str, along: str, colours: Mapping[str, str], axes: Mapping[str, Row] | None = None
) -> Figure:
    """The expected score along steps or guidance with its 95 % band, a line an engine (in ink if its colour is "")."""
    curve = response.filter(target=target, curve=along).drop_nulls("predicted").sort(along)
    traces: list[Row] = []
    for engine, colour in colours.items():
        rows = curve.filter(engine=engine)
        if rows.height > 1:
            traces += band_traces(rows[along], rows["predicted"], rows["low"], rows["high"], colour, engine)
    axes = axes or {"steps": steps_axis(curve["steps"]), "guidance": titled_axis("Guidance"), target: {}}
    layout = {"xaxis": axes[along], "yaxis": axes[target]}
    caption = "Line: the mean over the other settings tried; band: its 95 % interval."
    return Figure(COLUMN_LABELS[target], caption, traces, layout)


def image_dots(scores: pl.DataFrame, along: str, metric: str) -> Row:
    """A grey dot an image, for below a curve."""
    rows = scores.drop_nulls([along, metric])
    marker = {"size": 4, "color": plot_style.DOMINATED_COLOUR, "opacity": plot_style.BAND_OPACITY}
    return scatter_trace(rows[along].to_list(), rounded(rows[metric]), marker=marker, hoverinfo="skip")


def predicted_surface(
    response: pl.DataFrame, spot: Row, axes: Mapping[str, Row] | None = None, lead: Row | None = None
) -> Figure:
    """One engine's expected score over steps and guidance, dimmed outside the region; the best, and the lead if given.

    `spot` is the target's row of `sweet_spots`, `lead` that of "value".
    """
    target, unit = spot["target"], " SD" if spot["target"] == "overall" else ""
    surface = response.filter(target=target, curve="surface").drop_nulls("predicted")
    steps, guidance = (surface[name].unique().sort().to_list() for name in ("steps", "guidance"))
    cells = {(row["steps"], row["guidance"]): row for row in surface.iter_rows(named=True)}
    region = {(cell["steps"], cell["guidance"]) for cell in spot["region"]}
    lines = [[cells[s, g] for s in steps] for g in guidance]
    z = [[float(f"{row['predicted']:.5g}") if row["images"] else None for row in line] for line in lines]
    words = [
        [f"<b>{format_number(row['predicted'])}{unit}</b> ({format_interval(row)})" for row in line] for line in lines
    ]
    predicted = {"type": "contour", "x": steps, "y": guidance, "z": z, "text": words} | {
        "colorscale": plot_style.colour_scale(plot_style.SEQUENTIAL),
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0.5, "color": "rgba(255,255,255,0.5)"},
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "hovertemplate": "%{x:.0f} steps, guidance %{y:.1f}<br>%{text}<extra></extra>",
    }
    veil = {
        "type": "contour",
        "x": steps,
        "y": guidance,
        "z": [[float((s, g) not in region) for s in steps] for g in guidance],
        "contours": {"coloring": "fill", "start": 0.5, "end": 0.5, "size": 1},
        "colorscale": [[0, "rgba(0,0,0,0)"], [1, plot_style.translucent(plot_style.DOMINATED_COLOUR, 0.75)]],
        "line": {"width": 0, "smoothing": 0},
    } | {"zmin": 0, "zmax": 1, "zauto": False, "showscale": False, "meta": "veil", "hoverinfo": "skip"}
    marks, caption = [], f"Dimmed: worse than the best (95 %); bright: {spot['region_share']:.0%} of what was tried."
    if lead:
        marks.append(_mark_setting(lead, "lead", {"symbol": "circle", "size": 12}))
        caption += f" Dot: the lead, {_describe_prediction(lead, unit)}."
    if not lead or format_setting(lead) != format_setting(spot):
        marks.append(_mark_setting(spot, "best", {"symbol": "circle-open", "size": 15, "line": {"width": 3}}))
        caption += f" Ring: the best, {_describe_prediction(spot, unit)}."
    if any(value is None for line in z for value in line):
        caption += " Blank: no image near."
    axes = axes or {"steps": steps_axis(surface["steps"]), "guidance": titled_axis("Guidance")}
    layout = {"xaxis": axes["steps"] | {"showgrid": False}, "yaxis": axes["guidance"] | {"showgrid": False}}
    return Figure(f"{TARGET_LABELS[target]}: predicted", caption, [predicted, veil, *marks], layout)


def _mark_setting(spot: Row, name: str, marker: Row) -> Row:
    hover = f"{name}: {format_setting(spot)}<extra></extra>"
    place = [spot["steps"]], [spot["guidance"]]
    return scatter_trace(*place, marker=marker, meta="ink", hovertemplate=hover, cliponaxis=False)


def _describe_prediction(spot: Row, unit: str) -> str:
    less = f", {format_number(spot['optimism'], 2)} below the surface as one chosen of many" if spot["optimism"] else ""
    return f"{format_setting(spot)}, predicted {format_number(spot['predicted'])}{unit} ({format_interval(spot)}){less}"


def pareto_front(
    front: pl.DataFrame, colours: Mapping[str, str], axis: Row | None = None, labelled: bool = False
) -> Figure:
    """Overall quality against seconds, or against steps where nothing was timed.

    Settings on the front are joined, with 95 % intervals, and with their steps where they are `labelled`.
    """
    known = front.filter(target="overall").drop_nulls("predicted")
    timed = bool(known["seconds"].count())
    x = "seconds" if timed else "steps"

    def trace(rows: pl.DataFrame) -> Row:
        words = [
            f"{format_setting(row)}{', ' + format_number(row['seconds'], 2) + ' s' if timed else ''}<br>"
            f"<b>{format_number(row['predicted'], 2)} SD</b> ({format_interval(row)})<br>"
            f"on the front in {row['front_probability'] or 0:.0%} of resamples"
            for row in rows.iter_rows(named=True)
        ]
        places = {"x": rounded(rows[x]), "y": rounded(rows["predicted"]), "hovertext": words}
        return {"type": "scatter", "hovertemplate": "%{hovertext}<extra></extra>"} | places

    traces: list[Row] = []
    for engine, colour in colours.items():
        rows = known.filter(engine=engine).sort(x)
        on, off = rows.filter("on_front"), rows.filter(~pl.col("on_front"))
        share, off_share = (part["front_probability"].fill_null(0) for part in (on, off))
        hollow = {"symbol": "circle-open", "size": (5 + 11 * off_share).to_list(), "color": plot_style.DOMINATED_COLOUR}
        sizes, opacities = (5 + 11 * share).to_list(), (0.35 + 0.65 * share).to_list()
        full = {"size": sizes, "opacity": opacities, "color": colour}
        joined = trace(on) | {"mode": "lines+markers", "line": {"color": colour, "width": 2}, "marker": full}
        if labelled:
            labels = {"text": [str(steps) for steps in on["steps"]], "textfont": {"color": colour}}
            joined |= {"mode": "lines+markers+text", "textposition": "bottom right"} | labels
        traces += [trace(off) | {"mode": "markers", "marker": hollow}, joined | {"name": html.escape(engine)}]
        traces.append(interval_trace(rounded(on[x]), on["low"], on["high"], colour, vertical=True))
    caption = (
        "Joined: settings that no other beats in both, with 95 % intervals. The larger a dot, the more often it stays "
        "on the front when the images are resampled; hollow ones are on the front only then."
    )
    x_axis = titled_axis("Seconds an image" if timed else "Steps")
    layout = {"xaxis": x_axis, "yaxis": axis or titled_axis("Overall, SD")}
    return Figure(f"Quality against {x}", caption, traces, layout)


def correlation_map(correlations: pl.DataFrame) -> Figure:
    """One engine's rank correlations of every two metrics, and of the settings with them."""
    pairs = {(row["left"], row["right"]): row for row in correlations.iter_rows(named=True)}
    lefts = set(correlations["left"])
    labels = METRIC_LABELS | {name: label for name, label in SETTING_LABELS.items() if name in lefts}
    lines = [
        [pairs.get((left, right)) or pairs.get((right, left)) for right in METRIC_LABELS] for left in reversed(labels)
    ]
    z = [[row["spearman"] if row else None for row in line] for line in lines]
    trace = {
        **{"type": "heatmap", "x": list(METRIC_LABELS.values()), "y": [labels[left] for left in reversed(labels)]},
        **{"z": z, "zmin": -1, "zmax": 1, "colorscale": [list(stop) for stop in plot_style.DIVERGING]},
        **{"showscale": False, "xgap": 2, "ygap": 2},
        "text": [["" if value is None else format_number(value, 2) for value in line] for line in z],
        "texttemplate": "%{text}",
        "hovertext": [[_describe_pair(row) if row else "" for row in line] for line in lines],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "hoverongaps": False,
    }
    layout = {"xaxis": {"showgrid": False}, "yaxis": {"showgrid": False, "automargin": True}}
    caption = "Spearman’s ρ between images; point at a cell for its 95 % intervals, or open the table below."
    return Figure("Which metrics and settings move together", caption, [trace], layout)


def _describe_pair(row: Row) -> str:
    labels = METRIC_LABELS | SETTING_LABELS
    lines = [f"{labels[row['left']]} and {labels[row['right']]}, {row['n']:,} images"]
    for name, label in (("spearman", "Spearman"), ("pearson", "Pearson")):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        lines.append(f"{label} {format_number(row[name], 2)} ({format_number(low, 2)} to {format_number(high, 2)})")
    return "<br>".join(html.escape(line) for line in lines)


def sweet_spot_region(spots: pl.DataFrame, scores: pl.DataFrame, target: str, colour: str) -> Figure:
    """One engine's settings not significantly different from the best, the best (star), the value for time (ring).

    Behind them are the settings of all images.
    """
    rows = {row["target"]: row for row in spots.to_dicts()}
    images = scores.drop_nulls(["steps", "guidance"])
    guidance = effective_guidance(images["guidance"].to_numpy())
    traces = [scatter_trace(images["steps"].to_list(), guidance.tolist(), marker={"size": 2, "color": plot_style.INK})]
    if row := rows.get(target):
        steps, region_guidance = ([cell[name] for cell in row["region"]] for name in ("steps", "guidance"))
        square = {"size": 7, "symbol": "square", "color": plot_style.translucent(colour, 2 * plot_style.BAND_OPACITY)}
        star = {"size": 13, "symbol": "star", "color": colour}
        traces += [
            scatter_trace(steps, region_guidance, marker=square),
            scatter_trace([row["steps"]], [row["guidance"]], marker=star),
        ]
    if target == "overall" and (row := rows.get("value")):
        ring = {"size": 12, "symbol": "circle-open", "color": colour}
        traces.append(scatter_trace([row["steps"]], [row["guidance"]], marker=ring))
    layout = {"xaxis": steps_axis(images["steps"]), "yaxis": titled_axis("Guidance")}
    return Figure(COLUMN_LABELS[target], "Squares: not significantly different from the best.", traces, layout)


def format_interval(row: Row) -> str:
    return f"{format_number(row['low'])} to {format_number(row['high'])}"


def format_setting(spot: Row) -> str:
    """As in `20 steps at guidance 4.5`."""
    guidance = "" if spot["guidance"] is None else f" at guidance {format_guidance(spot['guidance'])}"
    return f"{spot['steps']} steps{guidance}"


def format_guidance(value: float | None) -> str:
    """A guidance as it is shown; diffusers switches it off at 1 and below."""
    return "–" if value is None else "1 (off)" if value <= 1 else f"{value:.1f}"


# Pictures for Dagster's UI


def plot_sweep_response(table: pl.DataFrame) -> bytes | None:
    """Every target over steps (above) and over guidance (below), with its 95 % band."""
    known = table.filter(pl.col("curve") != "surface").drop_nulls("predicted")
    targets, curves = _ordered_subset(TARGET_LABELS, known["target"]), _ordered_subset(SETTING_LABELS, known["curve"])
    colours = assign_colours(known["engine"])
    panels = [response_curve(known, target, curve, colours) for curve in curves for target in targets]
    return render_webp(panels, len(targets)) if panels else None


def plot_sweep_effects(table: pl.DataFrame) -> bytes | None:
    """What steps, guidance and their interaction change of each target, with 95 % intervals."""
    known = table.drop_nulls("change")
    effects = {name: COLUMN_LABELS.get(name, name) for name in known["effect"].unique(maintain_order=True)}
    axis, colours = titled_axis("change") | {"zeroline": True}, assign_colours(known["engine"])
    panels = [
        interval_figure(COLUMN_LABELS[target], axis, known.filter(target=target), "effect", effects, "change", colours)
        for target in _ordered_subset(TARGET_LABELS, known["target"])
    ]
    return render_webp(panels, height=0.9 + 0.4 * len(effects)) if panels else None


def plot_diminishing_returns(table: pl.DataFrame) -> bytes | None:
    """Beyond how many steps one more does not pay, with 95 % intervals; to the most tried where they have no end."""
    known = table.drop_nulls("low").with_columns(pl.col("high").fill_null(pl.col("steps_to")))
    targets = {name: COLUMN_LABELS[name] for name in _ordered_subset(TARGET_LABELS, known["target"])}
    if not targets:
        return None
    title = "Beyond so many steps one more gains too little"
    axis = steps_axis(pl.concat([known["steps_from"], known["steps_to"]]))
    figure = interval_figure(title, axis, known, "target", targets, "beyond", assign_colours(known["engine"]))
    return render_webp([figure], width=6.0, height=0.9 + 0.4 * len(targets))


def plot_pareto_front(table: pl.DataFrame) -> bytes | None:
    """Overall quality against seconds: settings on the front joined, each with its steps and 95 % interval."""
    known = table.filter(target="overall").drop_nulls(["seconds", "predicted"])
    if not known.height:
        return None
    figure = pareto_front(known, assign_colours(known["engine"]), labelled=True)
    return render_webp([figure], width=6.0, height=3.4)


def plot_sweet_spots(table: pl.DataFrame, scores: pl.DataFrame) -> bytes | None:
    """The settings not significantly different from the best: a row of panels an engine, a column a target."""
    known = table.drop_nulls(["steps", "guidance"])
    targets = _ordered_subset(TARGET_LABELS, known["target"])
    panels = [
        sweet_spot_region(known.filter(engine=engine), scores.filter(engine=engine), target, colour)
        for engine, colour in assign_colours(known["engine"]).items()
        for target in targets
    ]
    return render_webp(panels, len(targets)) if panels else None


def plot_sweep_comparison(table: pl.DataFrame) -> bytes | None:
    """Each engine's mean of each metric at the settings all were tried at, with 95 % intervals; None for one engine."""
    known = table.filter(pl.col("by") == "engine", pl.col("target").is_in(list(METRIC_LABELS))).drop_nulls("adjusted")
    colours = assign_colours(known["engine"])
    if len(colours) < 2:
        return None
    level = known.with_columns(low="adjusted_low", high="adjusted_high")
    names, axis = {engine: engine for engine in colours}, titled_axis("at the same settings")
    panels = [
        interval_figure(COLUMN_LABELS[target], axis, level.filter(target=target), "engine", names, "adjusted", colours)
        for target in _ordered_subset(METRIC_LABELS, known["target"])
    ]
    return render_webp(panels, height=0.9 + 0.3 * len(colours))


def plot_metric_correlations(table: pl.DataFrame) -> bytes | None:
    """Spearman's correlation of every two metrics, and of the settings with them: a panel an engine."""
    known = table.drop_nulls("spearman")
    panels = [
        replace(correlation_map(known.filter(engine=engine)), title=f"{engine}: Spearman’s ρ between images")
        for engine in assign_colours(known["engine"])
    ]
    return render_webp(panels, width=4.4, height=3.6) if panels else None


def _ordered_subset(names: Collection[str], present: Collection[str]) -> list[str]:
    """Those of the names that are present, in their own order."""
    return [name for name in names if name in set(present)]
