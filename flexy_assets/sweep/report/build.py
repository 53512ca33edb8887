"""One HTML file that says which settings to use, how sure that is, and shows the pictures behind it.

The file fetches nothing: Plotly's JavaScript is inlined, pictures are data URIs, and a content security
policy lets only the two scripts written here run. Prompts, engine names and ids come from outside and are
treated as hostile: Jinja escapes them in HTML and JSON, the script sets them as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from flexy_assets.reporting.html import load_template
from flexy_assets.reporting.plot_style import SEQUENTIAL
from flexy_assets.reporting.thumbnails import make_thumbnails
from flexy_assets.sweep.analysis import (
    COLUMN_LABELS,
    METRIC_LABELS,
    NO_GUIDANCE,
    VALUE_TOLERANCE,
    AnalysisTables,
    tried_images,
    with_overall,
)
from flexy_assets.sweep.analysis.disagreement import MetricDisagreement, are_same_prompt, find_disagreements
from flexy_assets.sweep.plots import format_guidance
from flexy_assets.sweep.report.comparison_panels import AXIS_ENDS, comparison_panels, shared_settings
from flexy_assets.sweep.report.figures import (
    axis_ranges,
    guidance_axis_range,
    report_figures,
    share_colour_scale,
)
from flexy_assets.sweep.report.points import MAX_BYTES, point_data, sample_images
from flexy_assets.sweep.report.summary import (
    describe_components,
    describe_front,
    format_effects,
    format_guidance_range,
    format_span,
    list_shortfalls,
    summarize_sweep,
)
from resources.files import write_atomically

Row = dict[str, Any]


def sweep_thumbnails_needed(scores: pl.DataFrame) -> list[str]:
    """Ids of the images that `render` shows: all, or `points.MOST_POINTS` of them."""
    overall = with_overall(scores)
    return sample_images(overall, find_disagreements(overall))["image_id"].drop_nulls().to_list()


def write_sweep_report(
    path: Path, scores: pl.DataFrame, tables: AnalysisTables, read: Callable[[str], Image.Image]
) -> None:
    """Write the report of these scores, whole or not at all, with small pictures of what `read` finds by its path."""
    chosen = scores.filter(pl.col("image_id").is_in(sweep_thumbnails_needed(scores)))
    paths = dict(chosen.drop_nulls("image_path").select("image_id", "image_path").iter_rows())
    found = make_thumbnails(read, list(paths.values()), MAX_BYTES)
    shown = {image_id: found[path] for image_id, path in paths.items() if path in found}
    write_atomically(path, render_sweep_report(scores, tables, shown).encode())


def render_sweep_report(scores: pl.DataFrame, tables: AnalysisTables, small: Mapping[str, bytes]) -> str:
    """The report as one HTML document.

    The tables are those of the scores; `small` are WebP bytes by image id, of which `pictures_needed`
    names the useful ones. A missing thumbnail leaves a grey square with the picture's words.
    """
    overall = with_overall(scores)
    found = find_disagreements(overall)
    points = sample_images(overall, found)
    axes = axis_ranges(overall)
    engines = []
    for index, rows in enumerate(overall.partition_by("engine", maintain_order=True) if overall.height else []):
        name = rows["engine"][0]
        of, settings = tables.of_engine(name), " and ".join(tried_images(rows))
        spots, common = _sweet_spot_rows(of)
        heads, moved = format_effects(of.effects, "guidance" in settings)
        engines.append(
            {
                "name": name,
                "counts": _counts(rows),
                "settings": settings,
                "answer": summarize_sweep(of.spots, of.regression, settings),
                "spots": spots,
                "common": [note for note in common if note != NO_GUIDANCE],
                "front": describe_front(of.front, of.spots.filter(target="overall")["steps"].count() > 0),
                "returns": [row for row in _less(of.returns, common) if row["said"] or row["note"]],
                "effects": {"heads": heads, "rows": moved},
                "figures": report_figures(f"figure-{index}", rows, axes, of),
                "guidance_range": guidance_axis_range(rows),
                "correlations": list(of.correlations.iter_rows(named=True)),
                "components": describe_components(of.components),
                "loadings": of.components.drop_nulls("share").to_dicts(),
                "regression": _regression_rows(of.regression),
            }
        )
    drawn = [figure for engine in engines for figure in engine["figures"]]
    share_colour_scale(drawn)
    return load_template("sweep/report/report.html.j2", {"guidance": format_guidance}).render(
        engines=engines,
        counts=_counts(overall),
        shortfalls=list_shortfalls(scores, overall, tables.correlations, tables.regression),
        compared=comparison_panels(tables.comparison),
        shared=shared_settings(tables.comparison),
        ends=AXIS_ENDS,
        shown=points.height,
        pictured=sum(image_id in small for image_id in points["image_id"]),
        axes=axes,
        coloured_by=_colour_options(overall),
        disagreement=_disagreement(overall, found),
        data=point_data(points, overall, found, small)
        | {
            "labels": METRIC_LABELS,
            "axes": axes,
            "guidance": guidance_axis_range(overall),
            "scale": SEQUENTIAL,
            "figures": {f.key: {"data": f.figure.data, "layout": f.figure.layout, "points": f.points} for f in drawn},
        },
        labels=COLUMN_LABELS,
        metrics=METRIC_LABELS,
        tolerance=VALUE_TOLERANCE,
        sequential=SEQUENTIAL,
    )


def _counts(rows: pl.DataFrame) -> Row:
    return {
        "images": rows.height,
        "engines": rows["engine"].n_unique(),
        "runs": rows["run_id"].drop_nulls().n_unique(),
        "prompts": rows["prompt"].drop_nulls().n_unique(),
        "missing": {metric: rows[metric].null_count() for metric in METRIC_LABELS},
    }


def _sweet_spot_rows(of: AnalysisTables) -> tuple[list[Row], list[str]]:
    """The rows of `spots` with ranges as text and the honest R² behind them; and the notes that all settings have."""
    notes = [note.split("; ") for note in of.spots.drop_nulls("steps")["note"].fill_null("")]
    common = [note for note in notes[0] if note and all(note in others for others in notes)] if notes else []
    r2 = dict(of.regression.filter("chosen").select("metric", "r2").iter_rows())
    rows = [
        row
        | {
            "r2": r2.get(row["target"]),
            "steps_range": "" if row["steps"] is None else format_span(str(row["steps_low"]), str(row["steps_high"])),
            "guidance_range": format_guidance_range(row),
            "unit": " SD" if row["target"] in ("overall", "value") else "",
        }
        for row in _less(of.spots, common)
    ]
    return rows, common


def _less(table: pl.DataFrame, common: Sequence[str]) -> list[Row]:
    """The rows of a table without the notes that are said elsewhere."""
    return [
        row | {"note": "; ".join(note for note in (row["note"] or "").split("; ") if note not in common)}
        for row in table.iter_rows(named=True)
    ]


def _regression_rows(regression: pl.DataFrame) -> list[Row]:
    """One row a metric: the R² of each model side by side, and what was chosen."""
    found = []
    for (metric,), models in regression.group_by("metric", maintain_order=True):
        by_model = {row["model"]: row for row in models.iter_rows(named=True)}
        chosen = next(row for row in by_model.values() if row["chosen"])
        r2 = {model: row["r2"] for model, row in by_model.items()}
        found.append({**chosen, "metric": metric, "r2": r2})
    return found


def _colour_options(overall: pl.DataFrame) -> str:
    """What tells the images apart at first sight."""
    several = (name for name in ("engine", "run_id", "guidance") if overall[name].drop_nulls().n_unique() > 1)
    return next(several, "engine")


def _disagreement(overall: pl.DataFrame, found: Sequence[MetricDisagreement]) -> Row:
    """Which metrics disagree most and least, and what their pairs are taken from."""
    ranked = [pair for pair in found if pair.share is not None]
    return {"pairs": found, "ranked": ranked, "same_prompt": bool(are_same_prompt(overall).any()) if ranked else False}
