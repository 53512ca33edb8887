"""One HTML file that says which settings to use, with intervals, and shows the images behind that.

The file fetches nothing: Plotly's JavaScript is inlined, images are data URIs, and a content security
policy runs only the page's own scripts. Prompts, engine names and ids come from outside and are
treated as hostile: Jinja escapes them in HTML and JSON, the script sets them as text.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from flexy_assets.reporting.html import load_template
from flexy_assets.reporting.plot_style import SEQUENTIAL
from flexy_assets.reporting.thumbnails import make_thumbnails
from flexy_assets.sweep import analysis
from flexy_assets.sweep.analysis.disagreement import MetricDisagreement, are_same_prompt, find_disagreements
from flexy_assets.sweep.plots import format_guidance
from flexy_assets.sweep.report import summary
from flexy_assets.sweep.report.comparison_panels import AXIS_ENDS, comparison_panels, shared_settings
from flexy_assets.sweep.report.embedding_map import map_embeddings
from flexy_assets.sweep.report.figures import axis_ranges, guidance_axis_range, report_figures, share_colour_scale
from flexy_assets.sweep.report.points import MAX_BYTES, point_data, sample_images, varying_factors
from resources.files import write_atomically

Row = dict[str, Any]
Embeddings = tuple[str, Mapping[str, NDArray[np.float32]]]
"""The encoder that made them, and vectors (width,) by image id."""

FACTOR_LABELS: Final = {"scheduler": "Scheduler", "size": "Size", "negative_prompt": "Negative prompt"}


def sweep_thumbnails_needed(scores: pl.DataFrame) -> list[str]:
    """Return the ids of the images that the report shows: all, or `points.MAX_POINTS` of them."""
    overall = analysis.add_overall(scores)
    return sample_images(overall, find_disagreements(overall))["image_id"].drop_nulls().to_list()


def write_sweep_report(
    path: Path,
    scores: pl.DataFrame,
    tables: analysis.AnalysisTables,
    read: Callable[[str], Image.Image],
    read_vectors: Callable[[list[str]], Embeddings] = lambda ids: ("", {}),
) -> None:
    """Write the report of these scores, whole or not at all.

    `read` returns an image by its path, `read_vectors` the embeddings of images by their ids.
    """
    sample = scores.filter(pl.col("image_id").is_in(sweep_thumbnails_needed(scores)))
    paths = dict(sample.drop_nulls("image_path").select("image_id", "image_path").iter_rows())
    by_path = make_thumbnails(read, list(paths.values()), MAX_BYTES)
    thumbnails = {image_id: by_path[path] for image_id, path in paths.items() if path in by_path}
    embeddings = read_vectors(sample["image_id"].drop_nulls().to_list())
    write_atomically(path, render_sweep_report(scores, tables, thumbnails, embeddings).encode())


def render_sweep_report(
    scores: pl.DataFrame,
    tables: analysis.AnalysisTables,
    thumbnails: Mapping[str, bytes],
    embeddings: Embeddings = ("", {}),
) -> str:
    """Return the report as one HTML document.

    The tables are those of the scores; `thumbnails` are WebP bytes by image id, those of `sweep_thumbnails_needed`.
    A missing thumbnail leaves a grey square with the image's description, a missing embedding none on the map.
    """
    overall = _score_overall(scores, tables.regression)
    pairs = find_disagreements(overall)
    points = sample_images(overall, pairs)
    encoder, vectors = embeddings
    places = map_embeddings(points["image_id"].to_list(), points["prompt"].to_list(), vectors, encoder)
    axes = axis_ranges(overall)
    engines = []
    for index, rows in enumerate(overall.partition_by("engine", maintain_order=True) if overall.height else []):
        name = rows["engine"][0]
        engine_tables, settings = tables.of_engine(name), " and ".join(analysis.setting_names(rows))
        spots, common = _sweet_spot_rows(engine_tables)
        returns = _without_notes(engine_tables.returns, common)
        heads, effects = summary.format_effects(engine_tables.effects, "guidance" in settings)
        engines.append(
            {
                "name": name,
                "counts": _counts(rows),
                "settings": settings,
                "answer": summary.answer_sweep(engine_tables, settings),
                "times": summary.describe_times(engine_tables.times, analysis.find_time_heaps(rows)),
                "variance": _variance_rows(rows),
                "spots": spots,
                "common": [note for note in common if note != analysis.NO_GUIDANCE],
                "front": summary.describe_front(engine_tables.front, engine_tables.spots),
                "returns": [row for row in returns if row["summary"] or row["note"]],
                "effects": {"heads": heads, "rows": effects},
                "figures": report_figures(f"figure-{index}", rows, axes, engine_tables),
                "guidance_range": guidance_axis_range(rows),
                "correlations": list(engine_tables.correlations.iter_rows(named=True)),
                "components": summary.describe_components(engine_tables.components),
                "loadings": engine_tables.components.drop_nulls("share").to_dicts(),
                "regression": _regression_rows(engine_tables.regression),
            }
        )
    figures = [figure for engine in engines for figure in engine["figures"]]
    factors = {name: FACTOR_LABELS[name] for name in varying_factors(overall)}
    share_colour_scale(figures)
    return load_template("sweep/report/report.html.j2", {"guidance": format_guidance}).render(
        engines=engines,
        counts=_counts(overall),
        about=summary.describe_images(overall),
        map=places,
        factors=factors,
        shortfalls=summary.list_shortfalls(scores, overall, tables.correlations, tables.regression),
        compared=comparison_panels(tables.comparison),
        shared=shared_settings(tables.comparison),
        ends=AXIS_ENDS,
        shown=points.height,
        pictured=sum(image_id in thumbnails for image_id in points["image_id"]),
        axes=axes,
        scores={name: axes[name] for name in ("overall", *analysis.METRIC_LABELS) if name in axes},
        coloured_by=_colour_options(overall),
        disagreement=_disagreement(overall, pairs),
        data=point_data(points, overall, pairs, thumbnails, places)
        | {
            "factors": factors,
            "labels": analysis.METRIC_LABELS,
            "axes": axes,
            "guidance": guidance_axis_range(overall),
            "scale": SEQUENTIAL,
            "figures": {f.key: {"data": f.figure.data, "layout": f.figure.layout, "points": f.points} for f in figures},
        },
        labels=analysis.COLUMN_LABELS,
        metrics=analysis.METRIC_LABELS,
        tolerance=analysis.VALUE_TOLERANCE,
        sequential=SEQUENTIAL,
    )


def _score_overall(scores: pl.DataFrame, regression: pl.DataFrame) -> pl.DataFrame:
    """Return the measured images with `overall`, by the weights that their analysis had."""
    parts = []
    for engine, rows in analysis.split_by_engine(scores):
        averages = regression.filter(engine=engine, model="average").drop_nulls("overall_weight")
        weights = dict(averages.select("target", "overall_weight").iter_rows())
        parts.append(analysis.add_weighted_overall(rows, weights or analysis.weigh_metrics(rows)[0]))
    return pl.concat(parts) if parts else analysis.add_overall(scores)


def _counts(rows: pl.DataFrame) -> Row:
    missing = {metric: rows[metric].null_count() for metric in analysis.METRIC_LABELS}
    return {"images": rows.height, "missing": missing}


def _variance_rows(rows: pl.DataFrame) -> Row:
    """Return what explains the scores' variance: the sources' names, and their shares by target."""
    shares = analysis.explain_variance(rows)
    known = {source for of_target in shares.values() for source in of_target}
    labels = {"prompt": "Prompt", "seed": "Seed", **analysis.SETTING_LABELS, **FACTOR_LABELS, "rest": "The rest"}
    return {"sources": {name: label for name, label in labels.items() if name in known}, "shares": shares}


def _sweet_spot_rows(tables: analysis.AnalysisTables) -> tuple[list[Row], list[str]]:
    """Return the rows of `spots` with ranges as text and the R² of their models, and the notes that all rows share."""
    notes = [note.split("; ") for note in tables.spots.drop_nulls("steps")["note"].fill_null("")]
    common = [note for note in notes[0] if note and all(note in others for others in notes)] if notes else []
    r2 = dict(tables.regression.filter(model="average").select("target", "r2").iter_rows())
    rows = _without_notes(tables.spots, common)
    for row in rows:
        steps_range = "" if row["steps"] is None else summary.format_span(str(row["steps_low"]), str(row["steps_high"]))
        row |= {"steps_range": steps_range, "guidance_range": summary.format_guidance_range(row)}
        row |= {"r2": r2.get(row["target"]), "unit": " SD" if row["target"] in ("overall", "value") else ""}
    return rows, common


def _without_notes(table: pl.DataFrame, common: Sequence[str]) -> list[Row]:
    """Return the rows of a table without the common notes."""
    return [
        row | {"note": "; ".join(note for note in (row["note"] or "").split("; ") if note not in common)}
        for row in table.iter_rows(named=True)
    ]


def _regression_rows(regression: pl.DataFrame) -> list[Row]:
    """Return one row per target: the R² and the weight of each form, and the R² of their average."""
    rows = []
    for _, models in regression.group_by("target", maintain_order=True):
        named = {row["model"]: row for row in models.iter_rows(named=True)}
        rows.append(named["average"] | {"models": named})
    return rows


def _colour_options(overall: pl.DataFrame) -> str:
    """Return the column that the images are first coloured by."""
    several = (name for name in ("engine", "run_id", "guidance") if overall[name].drop_nulls().n_unique() > 1)
    return next(several, "engine")


def _disagreement(overall: pl.DataFrame, pairs: Sequence[MetricDisagreement]) -> Row:
    """Return the pairs of metrics by their disagreement, and whether their images share prompts."""
    ranked = [pair for pair in pairs if pair.share is not None]
    return {"pairs": pairs, "ranked": ranked, "same_prompt": bool(are_same_prompt(overall).any()) if ranked else False}
