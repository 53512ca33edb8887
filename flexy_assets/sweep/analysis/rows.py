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
COLUMN_LABELS: Final[dict[str, str]] = TARGET_LABELS | SETTING_LABELS | {"value": "Lead"}
SCORES_TABLE_SCHEMA: Final = pl.Schema(SCORES_SCHEMA)

CONTENT: Final = ("prompt", "seed", "steps", "guidance", *METRIC_LABELS, "elapsed_ms")
"""What rows are ordered by, so that no draw depends on ids."""
MIN_IMAGES: Final = 10
"""No model is fitted to fewer images: five folds would hold one image each."""
REDUNDANT_CORRELATION: Final = 0.9
"""Metrics that correlate so highly between images measure one thing."""
LOWEST_MEANS: Final = {name: each.lowest_mean for name, each in METRICS.items() if each.lowest_mean is not None}
"""Below them, scores were computed with prompts that are not those of the images."""
NO_GUIDANCE: Final = "the engine has no guidance"


def measured_images(scores: pl.DataFrame) -> pl.DataFrame:
    """Return the columns of `SCORES_TABLE_SCHEMA` in their dtypes; NaN and infinity become null.

    They are ordered by engine and content, so that ids do not matter.

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
        .sort("engine", *CONTENT, "image_id")
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


def add_weighted_overall(scores: pl.DataFrame, shares: Mapping[str, float]) -> pl.DataFrame:
    """Return `measured_images(scores)` with `overall`, the weighted mean of an image's z-scores within its engine.

    It is in standard deviations of that mean. Null for an image that lacks a weighted metric which other images of its
    engine have: a mean over fewer metrics would be another quantity. A constant metric has no weight.
    """
    terms = []
    for metric, z in zip(METRIC_LABELS, _z_scores(), strict=True):
        if share := shares.get(metric):
            is_incomplete = pl.col(metric).is_null() & (pl.col(metric).count().over("engine") > 0)
            terms.append(pl.when(~is_incomplete).then(z.fill_null(0) * share))
    overall = pl.sum_horizontal(*terms, ignore_nulls=False)
    deviation = overall.std().over("engine")
    return measured_images(scores).with_columns(pl.when(deviation > 0).then(overall / deviation).alias("overall"))


def weigh_metrics(
    rows: pl.DataFrame, weights: Mapping[str, float] | None = None, suspect: Mapping[str, str] | None = None
) -> tuple[dict[str, float], list[str]]:
    """Return each metric's share of one engine's overall score, 1 in total, and what was decided about them.

    Without `weights`, metrics that correlate by `REDUNDANT_CORRELATION` or more share one weight; a metric whose mean
    is implausibly low, and those of `suspect` with their reason, are left out. Raises `BadInputError` for a weight that
    is negative or not finite, of an unknown metric, or where all are 0.
    """
    if weights:
        return normalize_weights(weights), []
    reasons = dict(suspect or {})
    for metric, lowest in LOWEST_MEANS.items():
        mean = rows[metric].mean()
        if isinstance(mean, float) and mean < lowest:
            reasons[metric] = f"a mean of {mean:.3f} is below {lowest:g}, as with wrong prompts"
    kept = [metric for metric in METRIC_LABELS if metric not in reasons and rows[metric].count()]
    if not kept:
        return normalize_weights(None), []
    groups: list[list[str]] = []
    for metric in kept:
        alike = [group for group in groups if any(_is_redundant(rows, metric, other) for other in group)]
        groups = [group for group in groups if group not in alike] + [[metric, *(m for group in alike for m in group)]]
    shares = {metric: 1 / len(groups) / len(group) for group in groups for metric in group}
    notes = [f"{METRIC_LABELS[metric]} is left out: {reason}; a weight clears it" for metric, reason in reasons.items()]
    for group in groups:
        if len(group) > 1:
            names = " and ".join(METRIC_LABELS[metric] for metric in METRIC_LABELS if metric in group)
            notes.append(f"{names} share a weight: they correlate by {REDUNDANT_CORRELATION:g} or more")
    return {metric: shares.get(metric, 0.0) for metric in METRIC_LABELS}, notes


def _is_redundant(rows: pl.DataFrame, left: str, right: str) -> bool:
    """Return whether two metrics are redundant."""
    both = rows.select(left, right).drop_nulls()
    value = both.select(pl.corr(left, right)).item() if both.height >= MIN_IMAGES else None
    return value is not None and value >= REDUNDANT_CORRELATION


def describe_shares(shares: Mapping[str, float]) -> str:
    """Return the metrics that overall is over, with their shares where those differ."""
    several = len({round(share, 9) for share in shares.values() if share}) > 1
    terms = [f"{METRIC_LABELS[metric]}{f' × {share:.2g}' * several}" for metric, share in shares.items() if share]
    return f"over {', '.join(terms)}"


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
