"""The rows of the analysis: one an image, its settings and scores, by engine."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from flexy_assets.storage.scores import LABEL_MARK, SCORES_SCHEMA
from flexy_assets.sweep.analysis.schemas import Schema
from flexy_assets.sweep.try_image import trial_sweep_id
from resources.errors import BadInputError
from resources.metrics.sweep import METRICS

Floats = NDArray[np.float64]
Row = dict[str, Any]

METRIC_LABELS: Final[dict[str, str]] = {metric.name: metric.label for metric in METRICS.values()}
SETTING_LABELS: Final[dict[str, str]] = {"steps": "Steps", "guidance": "Guidance", "elapsed_ms": "Time"}
TARGET_LABELS: Final[dict[str, str]] = METRIC_LABELS | {"overall": "Overall"}
"""The targets of the analysis: each metric, and the weighted mean of their z-scores."""
COLUMN_LABELS: Final[dict[str, str]] = TARGET_LABELS | SETTING_LABELS | {"value": "Value for time"}
SCORES_TABLE_SCHEMA: Final = pl.Schema(SCORES_SCHEMA)

MIN_IMAGES: Final = 10
"""No model is fitted to fewer images: five folds would hold one image each."""
NO_GUIDANCE: Final = "the engine has no guidance"


def measured_images(scores: pl.DataFrame) -> pl.DataFrame:
    """Return the columns of `SCORES_TABLE_SCHEMA` in their dtypes, by engine and image; NaN and infinity become null.

    Trials are left out: settings that a person tries until one pleases are not a random sample.
    """
    floats = pl.col(pl.Float64)
    engines = {engine.partition(LABEL_MARK)[0] for engine in scores["engine"].unique().drop_nulls()}
    trials = [str(trial_sweep_id(engine)) for engine in engines]
    # A table that an earlier version wrote lacks the later columns.
    absent = [pl.lit(None).alias(name) for name in SCORES_TABLE_SCHEMA if name not in scores.columns]
    return (
        scores.with_columns(absent)
        .filter(~pl.col("run_id").is_in(trials).fill_null(False))
        .select(pl.col(name).cast(dtype, strict=False) for name, dtype in SCORES_TABLE_SCHEMA.items())
        .with_columns(pl.when(floats.is_finite()).then(floats), pl.col("engine").fill_null("unknown"))
        .sort("engine", "image_id")
    )


def setting_names(rows: pl.DataFrame) -> list[str]:
    """Return the settings of one engine's images: `steps` and `guidance`, or `steps` where none has a guidance."""
    return ["steps", "guidance"] if rows["guidance"].count() else ["steps"]


def effective_guidance(guidance: ArrayLike) -> Floats:
    """Return guidance as diffusers applies it: switched off at 1 and below, so 0.5 and 1.0 make the same image.

    NaN, no guidance at all, stays NaN.
    """
    return np.maximum(np.asarray(guidance, dtype=np.float64), 1.0)


def add_overall(scores: pl.DataFrame) -> pl.DataFrame:
    """Return `measured_images(scores)` with `overall`, the mean of an image's z-scores within its engine."""
    return measured_images(scores).with_columns(pl.mean_horizontal(*_z_scores()).alias("overall"))


def add_weighted_overall(scores: pl.DataFrame, weights: Mapping[str, float] | None) -> pl.DataFrame:
    """Return `measured_images(scores)` with `overall`, the weighted mean of an image's z-scores within its engine.

    Null for an image that lacks a weighted metric which other images of its engine have: a mean over fewer metrics
    would be another quantity. A constant metric has no weight. Raises `BadInputError` for a weight that is
    negative or not finite, of an unknown metric, or where all are 0.
    """
    weighted_terms, weight_terms = [], []
    for (metric, share), z in zip(normalize_weights(weights).items(), _z_scores(), strict=True):
        if share:
            is_incomplete = pl.col(metric).is_null() & (pl.col(metric).count().over("engine") > 0)
            weighted_terms.append(pl.when(~is_incomplete).then(z.fill_null(0) * share))
            weight_terms.append(z.is_not_null().any().over("engine") * share)
    total = pl.sum_horizontal(*weight_terms)
    overall = pl.sum_horizontal(*weighted_terms, ignore_nulls=False) / total
    return measured_images(scores).with_columns(pl.when(total > 0).then(overall).alias("overall"))


def normalize_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return each metric's share of the overall score, 1 in total; equal shares without weights."""
    weights = weights or dict.fromkeys(METRIC_LABELS, 1.0)
    if unknown := sorted(weights.keys() - METRIC_LABELS.keys()):
        raise BadInputError(f"unknown metric {unknown[0]!r} in weights: choose from {', '.join(METRIC_LABELS)}")
    known = {metric: weights.get(metric, 0.0) for metric in METRIC_LABELS}
    if not all(0 <= weight < np.inf for weight in known.values()) or not any(known.values()):
        message = "invalid weights: each must be 0 or more and one above 0; without weights all count equally"
        raise BadInputError(message)
    return {metric: weight / sum(known.values()) for metric, weight in known.items()}


def select_images(scores: pl.DataFrame, engines: Collection[str] = (), runs: Collection[str] = ()) -> pl.DataFrame:
    """Return the images of these engines and sweeps, of all where none is named.

    Raises `BadInputError` for an unknown one.
    """
    for column, names in (("engine", engines), ("run_id", runs)):
        if missing := sorted(set(names) - set(scores[column])):
            kind = column.replace("run_id", "sweep")
            raise BadInputError(f"no images of {kind} {missing[0]!r}: flexy status lists them")
        if names:
            scores = scores.filter(pl.col(column).is_in(list(names)))
    return scores


def split_by_engine(scores: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each engine and its `measured_images`."""
    for (engine,), rows in measured_images(scores).group_by("engine", maintain_order=True):
        yield str(engine), rows


def float_column(rows: pl.DataFrame, name: str) -> Floats:
    """Return (n,) a column as floats, NaN where it is null."""
    return rows[name].cast(pl.Float64).fill_null(np.nan).to_numpy()


def make_rows(columns: Mapping[str, NDArray[Any] | None]) -> list[Row]:
    """Return one row an index of the columns (n,), without the columns that are None."""
    values = {name: column.tolist() for name, column in columns.items() if column is not None}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def make_frame(rows: Iterable[Row], schema: Schema) -> pl.DataFrame:
    """Return a table of the schema; NaN becomes null."""
    return pl.DataFrame(list(rows), schema=schema, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))


def join_notes(*notes: str | None) -> str | None:
    """Return the notes joined to one; None without any."""
    return "; ".join(note for note in notes if note) or None


def _z_scores() -> list[pl.Expr]:
    """Return each metric's z-score within its engine, higher for better; null where it is constant."""
    z_scores: list[pl.Expr] = []
    for metric in METRIC_LABELS:
        deviation = pl.col(metric).std().over("engine")
        z = (pl.col(metric) - pl.col(metric).mean().over("engine")) / deviation
        z_scores.append(pl.when(deviation > 0).then(z if METRICS[metric].higher_is_better else -z))
    return z_scores
