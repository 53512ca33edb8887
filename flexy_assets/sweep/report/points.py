"""The images that a report shows, one point and one thumbnail each, as columns for its script."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from flexy_assets.reporting.figures import rounded
from flexy_assets.sweep.analysis import METRIC_LABELS, effective_guidance
from flexy_assets.sweep.analysis.comparison import FACTORS
from flexy_assets.sweep.analysis.disagreement import MetricDisagreement
from flexy_assets.sweep.report.embedding_map import EmbeddingMap

MAX_POINTS: Final = 2400
"""Images on one page. A browser on a phone stutters above a few thousand points, and each has a thumbnail."""
MAX_BYTES: Final = 8_900_000
"""Of WebP on one page; as base64, with everything else, some 14 MB."""
EXTREME_IMAGES: Final = 4
"""Images required at each end of a metric, per engine."""
BINS: Final = 5
"""Bins of steps and of guidance in the grid of images."""
MAX_PROMPT_CHARACTERS: Final = 400

Numbers = np.ndarray[Any, np.dtype[np.float64]]


def sample_images(overall: pl.DataFrame, disagreements: Sequence[MetricDisagreement], seed: int = 0) -> pl.DataFrame:
    """Return the rows of `add_overall` that the page shows: all, or `MAX_POINTS`.

    Those are the best and worst of every metric, the pairs that metrics disagree on, and a random sample with as equal
    a share for every engine as possible.
    """
    if overall.height <= MAX_POINTS:
        return overall
    paired = [image_id for pair in disagreements for ids in pair.pairs for image_id in ids]
    required = pl.col("image_id").is_in(paired)
    for metric in METRIC_LABELS:
        for descending in (True, False):
            required |= pl.col(metric).rank("ordinal", descending=descending).over("engine") <= EXTREME_IMAGES
    # Images of one prompt and seed come together.
    alone = pl.when(pl.col("seed").is_null()).then("image_id").alias("alone")
    pair = overall.select(pl.struct("engine", "prompt", "seed", alone).rank("dense")).to_series().to_numpy() - 1
    place = np.random.default_rng(seed).permutation(int(pair.max()) + 1)[pair]
    shuffled = overall.with_columns(required=required.fill_null(False), place=pl.lit(place)).sort("place", "image_id")
    # The first of every engine, then the second of every engine: an engine with fewer images leaves room to others.
    turn = pl.int_range(pl.len()).over("engine")
    sample = shuffled.with_columns(turn=turn).sort(~pl.col("required"), "turn", "place").head(MAX_POINTS)
    return sample.sort("engine", "image_id").select(overall.columns)


def point_data(
    points: pl.DataFrame,
    overall: pl.DataFrame,
    disagreements: Sequence[MetricDisagreement],
    thumbnails: Mapping[str, bytes],
    places: EmbeddingMap | None,
) -> dict[str, Any]:
    """Return what the page's script reads, ready for JSON: names, columns (one entry an image), thumbnails and pairs.

    Engines, runs, prompts and the `FACTORS` that vary are indices into their names, most frequent first (prompts) or by
    name; `pictures` are WebP in base64, null where there is none. `spread` is each metric's mean and standard deviation
    an engine.
    """
    ids = points["image_id"].fill_null("").to_list()
    place = {image_id: index for index, image_id in enumerate(ids)}
    columns: dict[str, list[Any]] = {"id": ids, "path": points["image_path"].to_list()}
    names = {}
    shown = points.with_columns(pl.col("prompt").str.slice(0, MAX_PROMPT_CHARACTERS), **FACTORS)
    shown = shown.with_columns(pl.col("negative_prompt").str.slice(0, MAX_PROMPT_CHARACTERS))
    for name in ("engine", "run_id", "prompt", *varying_factors(overall)):
        counts = shown[name].drop_nulls().value_counts(name="images")
        frequent = [-pl.col("images").cast(pl.Int64)] if name == "prompt" else []
        names[name] = counts.sort(*frequent, name)[name].to_list()
        index = {value: number for number, value in enumerate(names[name])}
        columns[name] = [index.get(value) for value in shown[name]]
    columns["steps"] = points["steps"].to_list()
    columns["seed"] = points["seed"].cast(pl.String).to_list()  # JavaScript would round large ones
    columns |= {name: rounded(points[name], 6) for name in ("guidance", "overall", *METRIC_LABELS)}
    columns["seconds"] = rounded(points["elapsed_ms"] / 1000, 6)
    if places:
        columns |= {"map_x": places.x, "map_y": places.y}
    across, steps = _bins(points["steps"], overall["steps"], "{:.0f}".format)
    down, guidance = _bins(_effective(points), _effective(overall), _guidance)
    spread = overall.group_by("engine").agg(
        pl.concat_list(pl.col(metric).mean(), pl.col(metric).std()).alias(metric) for metric in METRIC_LABELS
    )
    return {
        "names": names,
        "columns": columns | {"across": across, "down": down},
        "bins": {"steps": steps, "guidance": guidance},
        "spread": {row.pop("engine"): row for row in spread.to_dicts()},
        "pictures": [
            base64.b64encode(thumbnails[image_id]).decode() if image_id in thumbnails else None for image_id in ids
        ],
        "pairs": [
            {"left": each.left, "right": each.right, "share": each.share}
            | {"pairs": [[place[a], place[b]] for a, b in each.pairs]}
            for each in disagreements
        ],
    }


def varying_factors(overall: pl.DataFrame) -> list[str]:
    """Return the names of `FACTORS` that the images have several values of."""
    values = overall.select(**FACTORS)
    return [name for name in FACTORS if values[name].drop_nulls().n_unique() > 1]


def _effective(rows: pl.DataFrame) -> pl.Series:
    guidance = rows["guidance"].fill_null(np.nan).to_numpy()
    return pl.Series(effective_guidance(guidance)).fill_nan(None)


def _guidance(value: float) -> str:
    return "≤1" if value <= 1 else f"{value:.1f}"


def _bins(points: pl.Series, values: pl.Series, write: Callable[[float], str]) -> tuple[list[int | None], list[str]]:
    """Return each point's bin among all values (about equally full, up to `BINS`) and each bin's range as text.

    A point without a value is in no bin.
    """
    known = values.drop_nulls().cast(pl.Float64).to_numpy()
    if not known.size:
        return [None] * len(points), []
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1]))
    full, bins = np.unique(np.searchsorted(edges, known), return_inverse=True)
    numbers = {int(edge): index for index, edge in enumerate(full)}
    labels = []
    for index in range(full.size):
        low, high = (write(end) for end in (known[bins == index].min(), known[bins == index].max()))
        labels.append(low if low == high else f"{low}–{high}")
    placed = points.cast(pl.Float64).fill_null(np.nan).to_numpy()
    edge_of = np.searchsorted(edges, placed)
    return [numbers[int(edge)] if np.isfinite(x) else None for edge, x in zip(edge_of, placed, strict=True)], labels


def failed_images(scores: pl.DataFrame) -> dict[str, int]:
    """Return how many scores of each metric are NaN or infinite; the analysis counts them as missing."""
    floats = scores.select(pl.col(metric).cast(pl.Float64, strict=False) for metric in METRIC_LABELS)
    return {metric: int((~floats[metric].is_finite()).sum()) for metric in METRIC_LABELS}
