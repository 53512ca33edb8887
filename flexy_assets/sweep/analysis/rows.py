"""What the analysis starts from: one row an image, its settings and scores, by engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from flexy_assets.storage.scores import SCORES_SCHEMA
from flexy_assets.sweep.try_image import trial_sweep_id
from resources.errors import BadInputError
from resources.metrics.sweep import METRICS

Floats = NDArray[np.float64]
Row = dict[str, Any]

METRIC_LABELS: Final[dict[str, str]] = {metric.name: metric.label for metric in METRICS.values()}
SETTING_LABELS: Final[dict[str, str]] = {"steps": "Steps", "guidance": "Guidance", "elapsed_ms": "Time"}
TARGET_LABELS: Final[dict[str, str]] = METRIC_LABELS | {"overall": "Overall"}
"""What is fitted to settings: each metric, and the weighted mean of their z-scores."""
COLUMN_LABELS: Final[dict[str, str]] = TARGET_LABELS | SETTING_LABELS | {"value": "Value for time"}
SCORES_TABLE_SCHEMA: Final = pl.Schema(SCORES_SCHEMA)

MIN_IMAGES: Final = 10
"""Below this many images no model is tried: five folds would hold one image each."""
NO_GUIDANCE: Final = "the engine has no guidance"


def measured_images(scores: pl.DataFrame) -> pl.DataFrame:
    """The columns of `SCORES` in their dtypes, by engine and image; NaN and infinity become missing.

    Trials are left out: where a person tries settings until one pleases, images are no sample of what settings do.
    """
    floats = pl.col(pl.Float64)
    trials = [str(trial_sweep_id(engine)) for engine in scores["engine"].unique().drop_nulls()]
    return (
        scores.filter(~pl.col("run_id").is_in(trials).fill_null(False))
        .select(pl.col(name).cast(dtype, strict=False) for name, dtype in SCORES_TABLE_SCHEMA.items())
        .with_columns(pl.when(floats.is_finite()).then(floats), pl.col("engine").fill_null("unknown"))
        .sort("engine", "image_id")
    )


def tried_images(rows: pl.DataFrame) -> list[str]:
    """The settings of one engine's images: `steps` and `guidance`, or `steps` alone where no image has a guidance."""
    return ["steps", "guidance"] if rows["guidance"].count() else ["steps"]


def effective_guidance(guidance: ArrayLike) -> Floats:
    """Guidance as diffusers applies it: switched off at 1 and below, so 0.5 and 1.0 make the same image.

    NaN stays: it is no guidance at all.
    """
    return np.maximum(np.asarray(guidance, dtype=np.float64), 1.0)


def with_overall(scores: pl.DataFrame) -> pl.DataFrame:
    """`measured(scores)` and `overall`: the mean of an image's z-scores within its engine; null without."""
    return measured_images(scores).with_columns(pl.mean_horizontal(*_z_scores()).alias("overall"))


def with_weighted(scores: pl.DataFrame, weights: Mapping[str, float]) -> pl.DataFrame:
    """`measured(scores)` and `overall`: the weighted mean of an image's z-scores within its engine.

    Null for an image that lacks a metric of weight that its engine has anywhere: a mean over fewer metrics
    would be another quantity. A metric that never varies has no weight. Raises `BadInputError` for a weight
    that is negative or not finite, that names no metric, or where all are 0.
    """
    zs, counted = [], []
    for (metric, share), z in zip(normalize_weights(weights).items(), _z_scores(), strict=True):
        if share:
            lacking = pl.col(metric).is_null() & (pl.col(metric).count().over("engine") > 0)
            zs.append(pl.when(~lacking).then(z.fill_null(0) * share))
            counted.append(z.is_not_null().any().over("engine") * share)
    total = pl.sum_horizontal(*counted)
    overall = pl.sum_horizontal(*zs, ignore_nulls=False) / total
    return measured_images(scores).with_columns(pl.when(total > 0).then(overall).alias("overall"))


def normalize_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Each metric's share of the overall score, in all 1; equal shares where no weight is given."""
    unknown = sorted(weights.keys() - METRIC_LABELS.keys())
    if unknown:
        raise BadInputError(f"no metric is called {unknown[0]!r}: weigh any of {', '.join(METRIC_LABELS)}")
    given = {metric: float(weights.get(metric, 0.0)) if weights else 1.0 for metric in METRIC_LABELS}
    if not all(0 <= weight < np.inf for weight in given.values()) or not any(given.values()):
        raise BadInputError("weights must be 0 or more, and one of them above 0: leave them out to weigh all alike")
    return {metric: weight / sum(given.values()) for metric, weight in given.items()}


def select_images(scores: pl.DataFrame, engines: Collection[str] = (), runs: Collection[str] = ()) -> pl.DataFrame:
    """The images of these engines and runs, of all where none is named.

    Raises `BadInputError` for one that is not there.
    """
    for column, names in (("engine", engines), ("run_id", runs)):
        missing = sorted(set(names) - set(scores[column]))
        if missing:
            raise BadInputError(
                f"no image of {column.removesuffix('_id')} {missing[0]!r}: see flexy status for what there is"
            )
        if names:
            scores = scores.filter(pl.col(column).is_in(list(names)))
    return scores


def split_by_engine(scores: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Each engine and its rows."""
    for rows in scores.partition_by("engine", maintain_order=True):
        if rows.height:
            yield rows["engine"][0], rows


def float_column(rows: pl.DataFrame, name: str) -> Floats:
    """(n,) a column as floats, NaN where it is missing."""
    return rows[name].cast(pl.Float64).fill_null(np.nan).to_numpy()


def make_frame(rows: list[Row], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """A table of the schema; NaN becomes null."""
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))


def summary_columns(*notes: str | None) -> str | None:
    """The notes that there are, as one; None without any."""
    return "; ".join(note for note in notes if note) or None


def _z_scores() -> list[pl.Expr]:
    """Each metric's z-score within its engine; null where it never varies."""
    zs: list[pl.Expr] = []
    for metric in METRIC_LABELS:
        spread = pl.col(metric).std().over("engine")
        z = (pl.col(metric) - pl.col(metric).mean().over("engine")) / spread
        zs.append(pl.when(spread > 0).then(z))
    return zs
