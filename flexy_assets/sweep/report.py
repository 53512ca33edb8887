"""One HTML file that says which settings to use, how sure that is, and shows the pictures behind it.

The file fetches nothing: Plotly's JavaScript is inlined, pictures are data URIs, and a content security
policy lets only the two scripts written here run. Prompts, engine names and ids come from outside and are
treated as hostile: Jinja escapes them in HTML and JSON, `_inert` in Plotly's own markup.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
from markupsafe import Markup

from flexy_assets.page import listed, number, template
from flexy_assets.sweep.analysis import (
    METRICS,
    SETTINGS,
    VALUE_TOLERANCE,
    effective_guidance,
    predict,
    tried,
    with_overall,
)

BINS: Final = 5
"""Steps and guidance bins of the picture grid."""
EXTREMES: Final = 4
"""Pictures shown at each end of a metric."""
MOST_POINTS: Final = 3000
"""Points drawn in one plot; a browser on a phone stutters above a few thousand."""
WEAK_R2: Final = 0.1
"""Below this share of the variance explained, advice is called a hint (a correlation of about 0.3)."""

# Both scales keep to middle lightness, so that they can be read on white and on black.
SEQUENTIAL: Final = ("#2f6fb7", "#7a67c7", "#c25c9c", "#e2705a", "#e6a23c")
DIVERGING: Final = ((0.0, "#3b7dc4"), (0.5, "rgba(128,128,128,0.12)"), (1.0, "#d9653b"))

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One plot: its words, and Plotly's `data` and `layout`; `key` is its element's id."""

    key: str
    title: str
    caption: str
    data: list[Row]
    layout: Row


@dataclass(frozen=True)
class Cell:
    """One cell of the picture grid: its images' count and the one whose overall score is the median."""

    images: int
    picture: Row


@dataclass(frozen=True)
class PictureGrid:
    """Pictures by guidance (down; one row without a label where there is none) and steps (across).

    A cell without images is None.
    """

    steps: list[str] = field(default_factory=list)
    guidance: list[str] = field(default_factory=list)
    cells: list[list[Cell | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Extremes:
    """The images with the highest and the lowest score of one metric, most extreme first."""

    metric: str
    best: list[Row]
    worst: list[Row]


def pictures_needed(scores: pl.DataFrame) -> list[str]:
    """Ids of the images that `render` shows: at most 57 an engine, whatever the number of images."""
    ids: dict[str, None] = {}
    for rows in with_overall(scores).partition_by("engine", maintain_order=True):
        for cells in _picture_grid(rows).cells:
            ids.update((cell.picture["image_id"], None) for cell in cells if cell)
        for metric in METRICS:
            extremes = _extremes(rows, metric)
            ids.update((row["image_id"], None) for row in extremes.best + extremes.worst)
    return list(ids)


def render(
    scores: pl.DataFrame,
    correlations: pl.DataFrame,
    regression: pl.DataFrame,
    spots: pl.DataFrame,
    thumbnails: Mapping[str, bytes],
) -> str:
    """The report as one HTML document.

    The tables are those of `analysis`; `thumbnails` are WebP bytes by image id, of which `pictures_needed`
    names the useful ones. A missing thumbnail leaves a grey square with the picture's words.
    """
    from plotly.offline import get_plotlyjs

    overall = with_overall(scores)
    engines = []
    for index, rows in enumerate(overall.partition_by("engine", maintain_order=True) if overall.height else []):
        name = rows["engine"][0]
        of_engine, settings = pl.col("engine") == name, " and ".join(tried(rows))
        models, targets = regression.filter(of_engine), spots.filter(of_engine)
        engines.append(
            {
                "name": name,
                "counts": _counts(rows),
                "settings": settings,
                "answer": _answer(targets, models, settings),
                "spots": [_spot(row, models) for row in targets.iter_rows(named=True)],
                "figures": _figures(f"figure-{index}", rows, correlations.filter(of_engine), models, targets),
                "guidance_range": _ends(effective_guidance(_numbers(rows, "guidance"))),
                "correlations": list(correlations.filter(of_engine).iter_rows(named=True)),
                "regression": _regression_rows(models),
                "grid": _picture_grid(rows),
                "extremes": [_extremes(rows, metric) for metric in METRICS if rows[metric].count()],
            }
        )
    return template("sweep/report.html.j2", {"guidance": _guidance}).render(
        engines=engines,
        counts=_counts(overall),
        figures={
            figure.key: {"data": figure.data, "layout": figure.layout} for e in engines for figure in e["figures"]
        },
        labels=METRICS | SETTINGS | {"overall": "Overall", "value": "Value for time"},
        metrics=METRICS,
        tolerance=VALUE_TOLERANCE,
        sequential=SEQUENTIAL,
        most_points=MOST_POINTS,
        thumbnails={
            image_id: "data:image/webp;base64," + base64.b64encode(webp).decode()
            for image_id, webp in thumbnails.items()
        },
        plotly_js=Markup(get_plotlyjs()),  # the package's own file, nothing from outside
    )


def _inert(text: str) -> str:
    """Text that Plotly shows as it is: it reads a little HTML (bold, links) in labels and hover texts."""
    return html.escape(text)


def _guidance(value: float | None) -> str:
    return "–" if value is None else "1 (off)" if value <= 1 else f"{value:.1f}"


def _numbers(rows: pl.DataFrame, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return rows[name].drop_nulls().cast(pl.Float64).to_numpy()


def _ends(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)


def _counts(rows: pl.DataFrame) -> Row:
    return {
        "images": rows.height,
        "engines": rows["engine"].n_unique(),
        "runs": rows["run_id"].drop_nulls().n_unique(),
        "prompts": rows["prompt"].drop_nulls().n_unique(),
        "missing": {metric: rows[metric].null_count() for metric in METRICS},
    }


def _answer(spots: pl.DataFrame, regression: pl.DataFrame, settings: str) -> list[Markup]:
    """Two to four sentences: what to use, what to use in a hurry, and how far to trust it."""
    rows = {row["target"]: row for row in spots.iter_rows(named=True)}
    chosen = {row["metric"]: row for row in regression.filter("chosen").iter_rows(named=True)}
    best, value = rows.get("overall"), rows.get("value")
    tested = [metric for metric, row in chosen.items() if row["r2"] is not None]
    if best is None or value is None or best["steps"] is None:
        if not tested:
            return [Markup("<strong>No advice yet:</strong> there are too few scored images, or all score alike.")]
        names = listed([METRICS[metric] for metric in tested])
        return [
            Markup(
                "<strong>No setting stands out.</strong> {} cannot be told from flat over the {} "
                "tried: as far as these images can tell, the quickest setting is as good as any."
            ).format(names, settings)
        ]
    said = [
        Markup("Best overall: <strong>{}</strong>{} ({} when the {} images are resampled).").format(
            _setting(best), _at(best["seconds"]), _between(best), f"{best['n']:,}"
        )
    ]
    if (value["steps"], value["guidance"]) == (best["steps"], best["guidance"]):
        said.append(Markup("Nothing quicker comes within {} SD of it.").format(VALUE_TOLERANCE))
    else:
        saved = 1 - value["seconds"] / best["seconds"] if value["seconds"] and best["seconds"] else None
        said.append(
            Markup("Best value: <strong>{}</strong>{}{}, within {} SD of the best.").format(
                _setting(value),
                _at(value["seconds"]),
                f", {saved:.0%} less time" if saved else "",
                VALUE_TOLERANCE,
            )
        )
    moving = {metric: row["r2"] for metric, row in chosen.items() if row["model"] != "mean"}
    flat = [METRICS[metric] for metric in tested if metric not in moving]
    shares = listed([f"{max(r2, 0):.0%} ({METRICS[metric]})" for metric, r2 in moving.items()])
    weak = max(moving.values(), default=0) < WEAK_R2
    said.append(
        Markup("{}{} explain {} of the variance{}; the rest is prompt, seed and noise.").format(
            Markup("<strong>Weak evidence, a hint and not a rule.</strong> ") if weak else "",
            settings.capitalize(),
            shares,
            f", none measurable for {listed(flat)}" if flat else "",
        )
    )
    if "edge" in (best["note"] or ""):
        said.append(Markup("The best lies at the edge of what was tried: a wider sweep may find better."))
    return said


def _at(seconds: float | None) -> str:
    return "" if seconds is None else f", about {number(seconds, 2)} s an image"


def _setting(spot: Row) -> str:
    guidance = "" if spot["guidance"] is None else f" at guidance {_guidance(spot['guidance'])}"
    return f"{spot['steps']} steps{guidance}"


def _between(spot: Row) -> str:
    """The bootstrap range of a spot in words."""
    guidance = _guidance_range(spot)
    steps = _range(f"{spot['steps_low']}", f"{spot['steps_high']}")
    return f"{steps} steps" + (f" and guidance {guidance}" if guidance else "")


def _guidance_range(spot: Row) -> str:
    if spot["guidance"] is None:
        return ""
    return _range(f"{spot['guidance_low']:.1f}", f"{spot['guidance_high']:.1f}")


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"


def _spot(row: Row, regression: pl.DataFrame) -> Row:
    """A row of `spots` with its ranges as text and the honest R² behind it."""
    r2 = regression.filter(pl.col("chosen") & (pl.col("metric") == row["target"]))["r2"]
    ranged = row["steps"] is not None
    return row | {
        "r2": r2[0] if len(r2) else None,
        "steps_range": _range(str(row["steps_low"]), str(row["steps_high"])) if ranged else "",
        "guidance_range": _guidance_range(row),
        "unit": " SD" if row["target"] in ("overall", "value") else "",
    }


def _regression_rows(regression: pl.DataFrame) -> list[Row]:
    """One row a metric: the R² of each model side by side, and what was chosen."""
    found = []
    for (metric,), models in regression.group_by("metric", maintain_order=True):
        by_model = {row["model"]: row for row in models.iter_rows(named=True)}
        chosen = next(row for row in by_model.values() if row["chosen"])
        r2 = {model: row["r2"] for model, row in by_model.items()}
        found.append({**chosen, "metric": metric, "r2": r2})
    return found


def _extremes(rows: pl.DataFrame, metric: str) -> Extremes:
    ranked = rows.drop_nulls(metric).sort(metric, "image_id")
    best = min(EXTREMES, (ranked.height + 1) // 2)
    worst = min(EXTREMES, ranked.height - best)
    shown = ranked.select("image_id", "prompt", "steps", "guidance", "seed", pl.col(metric).alias("score"))
    return Extremes(metric, shown.tail(best).reverse().to_dicts(), shown.head(worst).to_dicts())


def _picture_grid(rows: pl.DataFrame) -> PictureGrid:
    settings = tried(rows)
    placed = rows.drop_nulls(settings)
    if placed.is_empty():
        return PictureGrid()
    steps_bins, steps_labels = _bins(_numbers(placed, "steps"), lambda value: f"{value:.0f}")
    guidance_bins, guidance_labels = np.zeros(placed.height, int), [""]
    if "guidance" in settings:
        guidance = effective_guidance(_numbers(placed, "guidance"))
        guidance_bins, guidance_labels = _bins(guidance, lambda value: "≤1" if value <= 1 else f"{value:.1f}")
    binned = placed.with_columns(pl.Series("column", steps_bins), pl.Series("row", guidance_bins))
    cells: list[list[Cell | None]] = [[None] * len(steps_labels) for _ in guidance_labels]
    for (row, column), group in binned.group_by("row", "column"):
        nearest = (pl.col("overall") - pl.col("overall").median()).abs()
        middle = group.sort(nearest, "image_id", nulls_last=True).row(0, named=True)
        cells[row][column] = Cell(group.height, middle)
    return PictureGrid(steps_labels, guidance_labels, cells)


def _bins(values: np.ndarray[Any, Any], write: Any) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Each value's bin (about equally full, up to `BINS`, none empty) and each bin's range in words."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1]
    members = [values[bins == index] for index in range(bins.max() + 1)]
    return bins, [_range(write(member.min()), write(member.max())) for member in members]


def _figures(
    key: str, rows: pl.DataFrame, correlations: pl.DataFrame, regression: pl.DataFrame, spots: pl.DataFrame
) -> list[Figure]:
    settings = tried(rows)
    points = rows.drop_nulls(settings).with_columns(seconds=pl.col("elapsed_ms") / 1000)
    if points.is_empty():
        return []
    points = points.sample(min(points.height, MOST_POINTS), seed=0)
    chosen = {row["metric"]: row for row in regression.filter("chosen").iter_rows(named=True)}
    best = {row["target"]: row for row in spots.iter_rows(named=True)}
    figures = []
    moving = [metric for metric in METRICS if metric in best and best[metric]["steps"] is not None]
    # What moves comes first, in pairs of points and surface.
    for metric in sorted(METRICS, key=lambda metric: metric not in moving):
        if points[metric].count() == 0:
            continue
        label = METRICS[metric]
        figure = _scatter(f"{key}-{metric}", points, metric, label)
        figures.append(figure)
        if metric in moving and metric in chosen:
            figure.data.append(_model_line(points, chosen[metric], best[metric]["guidance"]))
            if "guidance" in settings:
                figures.append(_surface(f"{key}-{metric}-surface", points, label, chosen[metric], best[metric]))
    if points["seconds"].count():
        figure = _scatter(f"{key}-seconds", points, "seconds", "Seconds an image")
        figure.layout["xaxis"] = {"title": {"text": "Steps"}}
        figures.append(figure)
    if correlations["spearman"].count():
        figures.append(_correlation_map(f"{key}-correlations", correlations))
    return figures


def _steps_axis(points: pl.DataFrame) -> Row:
    low, high = _ends(_numbers(points, "steps"))
    ticks = sorted({low, high, *(float(t) for t in (1, 2, 4, 8, 16, 32, 64, 128, 256) if low * 1.3 < t < high / 1.3)})
    return {
        "title": {"text": "Steps"},
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:.0f}" for tick in ticks],
    }


def _scatter(key: str, points: pl.DataFrame, column: str, label: str) -> Figure:
    shown = points.drop_nulls(column)
    guidance = effective_guidance(_numbers(shown, "guidance"))
    low, high = _ends(effective_guidance(_numbers(points, "guidance")))
    colours: Row = {"color": SEQUENTIAL[0]}
    caption, hover = "One dot an image.", ""
    if guidance.size:
        colours = {"color": guidance.round(2).tolist(), "cmin": low, "cmax": high, "colorscale": _scale(SEQUENTIAL)}
        caption, hover = "One dot an image, coloured by guidance.", ", guidance %{marker.color:.1f}"
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": shown["steps"].to_list(),
        "y": shown[column].to_list(),
        "text": [_inert(image_id) for image_id in shown["image_id"].fill_null("")],
        "marker": {"size": 5, "opacity": 0.65, **colours},
        "hovertemplate": f"%{{x}} steps{hover}<br><b>%{{y:.4~g}}</b><br>%{{text}}<extra></extra>",
    }
    layout = {"xaxis": _steps_axis(points), "yaxis": {"title": {"text": label}}}
    return Figure(key, f"{label} by steps", caption, [trace], layout)


def _scale(colours: Sequence[str]) -> list[tuple[float, str]]:
    return [(index / (len(colours) - 1), colour) for index, colour in enumerate(colours)]


def _model_line(points: pl.DataFrame, model: Row, guidance: float | None) -> Row:
    steps = np.geomspace(*_ends(_numbers(points, "steps").clip(1)), 40)
    at = "" if guidance is None else f" at guidance {_guidance(guidance)}"
    return {
        "type": "scatter",
        "mode": "lines",
        "x": steps.tolist(),
        "y": predict(model, steps, np.nan if guidance is None else guidance).tolist(),
        "line": {"width": 2},
        "meta": "ink",
        "hovertemplate": f"model{at}<br><b>%{{y:.4~g}}</b><extra></extra>",
    }


def _surface(key: str, points: pl.DataFrame, label: str, model: Row, best: Row) -> Figure:
    steps = np.geomspace(*_ends(_numbers(points, "steps").clip(1)), 32)
    guidance = np.linspace(*_ends(effective_guidance(_numbers(points, "guidance"))), 32)
    surface = {
        "type": "contour",
        "x": steps.tolist(),
        "y": guidance.tolist(),
        "z": predict(model, steps[None, :], guidance[:, None]).tolist(),
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
        "hovertemplate": f"{_setting(best)}<extra></extra>",
    }
    caption = f"By the {model['model']} model (R² {number(model['r2'], 2)}); the ring is its best setting."
    # A little room around the surface keeps a ring on its edge whole.
    layout = {
        "xaxis": {**_steps_axis(points), "range": _padded(np.log10(steps)), "showgrid": False},
        "yaxis": {"title": {"text": "Guidance"}, "range": _padded(guidance), "showgrid": False},
    }
    return Figure(key, f"{label}: predicted", caption, [surface, spot], layout)


def _padded(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    room = 0.04 * float(np.ptp(values)) or 0.1
    return [float(values.min()) - room, float(values.max()) + room]


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
    return Figure(key, "What moves together", caption, [trace], layout)


def _pair_words(row: Row) -> str:
    labels = METRICS | SETTINGS
    lines = [f"{labels[row['left']]} and {labels[row['right']]}, {row['n']:,} images"]
    for name, label in (("spearman", "Spearman"), ("pearson", "Pearson")):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        lines.append(f"{label} {number(row[name], 2)} ({number(low, 2)} to {number(high, 2)})")
    return "<br>".join(_inert(line) for line in lines)
