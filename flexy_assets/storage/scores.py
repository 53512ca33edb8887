"""Missing scores, how outcomes are recorded, and score tables. Every function takes a connection in a transaction."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Exists, Select, and_, case, exists, func, or_, select, update

from flexy_assets.storage import tables
from flexy_assets.storage.flexyface import RESULTS, record_failed_status, scored_status
from flexy_assets.storage.runs import in_model_set, prompt_column
from flexy_assets.storage.sql import upsert, utc_now
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results, image_embeddings, image_scores
from resources.errors import FlexyError
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.settings import Settings

if TYPE_CHECKING:
    import polars as pl

MAX_ATTEMPTS = 3  # at a score that fails; after them it waits for a rescore request
EMBEDDING_METRIC = "clip_embedding"  # of embedding failures in `image_scores`


@dataclass(frozen=True)
class PendingImage:
    """An image that still needs a score."""

    image_id: UUID
    prompt: str | None
    image_path: str | None
    image_sha256: str | None


@dataclass(frozen=True)
class ScoredImage:
    """One image's outcome of a scorer: a finite value, or the error."""

    image_id: UUID
    value: float | None
    error: str | None = None

    @classmethod
    def of(cls, image_id: UUID, value: float) -> ScoredImage:
        """Return the outcome of a measured value; NaN and infinity are failures."""
        if math.isfinite(value):
            return cls(image_id, float(value))
        return cls(image_id, None, f"the scorer returned {value}")


def metric_value(metric: str) -> ColumnElement[float | None]:
    """Return an image's value of `metric`: from its column or, for a metric without one, from `image_scores`."""
    if metric in METRIC_COLUMNS:
        return bench_run_results.c[metric]
    outcome = image_scores.alias(f"kept_{metric}").c
    of_image = outcome.image_id == bench_run_results.c.id, outcome.metric == metric
    return select(outcome.value).where(*of_image).scalar_subquery().label(metric)


def score_value(metric: str) -> ColumnElement[float | None]:
    """Return an image's value of `metric`, NULL in place of NaN; unlike `metric_value` no index knows it."""
    return func.nullif(metric_value(metric), sa.literal_column("'NaN'"), type_=sa.Float)


def has_outcome(metric: str, *conditions: ColumnElement[bool]) -> Exists:
    """Return whether the image's last outcome of `metric` meets the conditions."""
    of_image = image_scores.c.image_id == bench_run_results.c.id, image_scores.c.metric == metric
    return exists().where(*of_image, *conditions).correlate(bench_run_results)


# Success clears the error; that the outcome is unsettled is said again for the index of those.
ATTEMPTS_EXHAUSTED = and_(tables.unsettled, image_scores.c.error.is_not(None), image_scores.c.attempts >= MAX_ATTEMPTS)
RESCORE_REQUESTED = and_(image_scores.c.rescore.is_not(None), image_scores.c.attempts < MAX_ATTEMPTS)


def is_pending(metric: str) -> ColumnElement[bool]:
    """Return whether an image needs the score: it is missing with attempts left, or a rescore is requested.

    A score that was set back to NULL is missing again, however many attempts it had.
    """
    return or_(
        and_(metric_value(metric).is_(None), ~has_outcome(metric, ATTEMPTS_EXHAUSTED)),
        has_outcome(metric, RESCORE_REQUESTED),
    )


@dataclass(frozen=True)
class PendingImages:
    """The images that still need a score or an embedding, oldest first."""

    images: Select[Any]

    def of(self, connection: Connection, batch: str, among: Collection[UUID] | None = None) -> list[PendingImage]:
        """Return those of a batch and, if given, of `among`."""
        statement = self.images.where(bench_run_results.c.batch == batch)
        if among is not None:
            statement = statement.where(bench_run_results.c.id.in_(list(among)))
        return [PendingImage(*row) for row in connection.execute(statement)]

    def count(self, connection: Connection, batches: Sequence[str]) -> int:
        """Return how many there are in these batches."""
        images = self.images.where(bench_run_results.c.batch.in_(batches)).order_by(None)
        return connection.scalar(images.with_only_columns(func.count(bench_run_results.c.id))) or 0


def select_scorable_images(settings: Settings, prompts: str = "") -> Select[Any]:
    """Return the images that this model set may score; their prompts from the column `prompts` alone, if given."""
    images = bench_run_results.c
    images_of_set = select(images.id, prompt_column(settings, prompts), images.image_path, images.image_sha256)
    return images_of_set.where(in_model_set(settings.models)).order_by(images.created_at, images.id)


def select_pending_scores(
    metric: str, settings: Settings, rests_on: str | None = None, prompts: str = ""
) -> PendingImages:
    """Return the images that need `metric`: without a score and with attempts left, or with a rescore requested.

    With `rests_on`, an encoder, only those that it has embedded or failed on: the others are still to come.
    """
    pending = select_scorable_images(settings, prompts).where(is_pending(metric))
    if rests_on:
        attempted = has_outcome(EMBEDDING_METRIC, image_scores.c.error.is_not(None), image_scores.c.attempts > 0)
        pending = pending.where(or_(is_embedded(rests_on), attempted))
    return PendingImages(pending)


def is_embedded(encoder: str) -> Exists:
    """Return whether the encoder's vector of the image is stored."""
    vectors = image_embeddings.c
    return exists().where(vectors.image_id == bench_run_results.c.id, vectors.encoder == encoder)


def count_missing_scores(connection: Connection, settings: Settings) -> dict[str, dict[str, int]]:
    """Return by metric the batches with missing scores, and how many images of each need one."""
    images = bench_run_results
    missing: dict[str, Counter[str]] = {metric: Counter() for metric in METRICS}
    scorable = and_(images.c.batch.is_not(None), in_model_set(settings.models))
    # Answered from an index of the rows that lack a score, in one pass for all metrics.
    missing_counts = [(func.count() - func.count(images.c[name])).label(name) for name in METRIC_COLUMNS]
    lacking = select(images.c.batch, *missing_counts).where(tables.lacks_any_score, scorable).group_by(images.c.batch)
    for batch, *counts in connection.execute(lacking):
        for metric, count in zip(METRIC_COLUMNS, counts, strict=True):
            missing[metric][batch] += count
    by_batch = select(images.c.batch, func.count()).where(scorable).group_by(images.c.batch)
    for metric in METRICS:
        if metric not in METRIC_COLUMNS:
            missing[metric].update(dict(connection.execute(by_batch.where(is_pending(metric))).tuples().all()))
            continue
        # Few: those that were given up, and those that are to be replaced.
        of_metric = by_batch.join(image_scores, image_scores.c.image_id == images.c.id)
        of_metric = of_metric.where(image_scores.c.metric == metric)
        for sign, kind, filled in ((-1, ATTEMPTS_EXHAUSTED, False), (1, RESCORE_REQUESTED, True)):
            has_value = images.c[metric].is_not(None) if filled else images.c[metric].is_(None)
            for batch, count in connection.execute(of_metric.where(kind, has_value)):
                missing[metric][batch] += sign * count
    return {m: {batch: count for batch, count in sorted(f.items()) if count > 0} for m, f in missing.items() if +f}


def record_scores(connection: Connection, metric: str, scorer: str, scores: Sequence[ScoredImage]) -> int:
    """Write each value to its column, if it has one, and each outcome to `image_scores`.

    Returns how many values were written. A value that is there is overwritten only where it was asked for; what
    another worker has settled meanwhile is left as it is.
    """
    ids = [s.image_id for s in scores]
    images = bench_run_results
    replaced = has_outcome(metric, image_scores.c.rescore.is_not(None))
    still_open = select(images.c.id).where(images.c.id.in_(ids), or_(metric_value(metric).is_(None), replaced))
    open_ids = set(connection.scalars(still_open.with_for_update()))
    scores = [s for s in scores if s.image_id in open_ids]
    measured = [s for s in scores if s.value is not None]
    if measured and metric in METRIC_COLUMNS:
        relation = _scores_relation(connection, measured)
        statement = update(RESULTS).where(RESULTS.c.id == relation.c.image_id)
        status = scored_status(connection, metric)
        taken = connection.execute(statement.values({metric: relation.c.value, **status})).rowcount
        if taken != len(measured):
            raise FlexyError(
                f"{images.name} took {taken} of {len(measured)} values of {metric}: row-level security or a trigger"
                " refuses the others: let this user update the rows"
            )
    record_failed_status(connection, metric, [s.image_id for s in scores if s.value is None])
    record_outcomes(connection, metric, scorer, scores)
    return len(measured)


def record_outcomes(
    connection: Connection, metric: str, scorer: str, scores: Sequence[ScoredImage], keep_values: bool = False
) -> None:
    """Write each outcome to `image_scores`; a failure counts as one more attempt.

    With `keep_values` a failure replaces no value, as of another judge.
    """
    if not scores:
        return
    relation = _scores_relation(connection, scores)
    fixed = {"metric": metric, "attempts": 1, "scorer": scorer, "scored_at": utc_now()}
    values = (sa.literal(value, image_scores.c[name].type) for name, value in fixed.items())
    # SQLite parses ON CONFLICT as a join's ON without a WHERE.
    rows = select(relation.c.image_id, relation.c.value, relation.c.error, *values).where(sa.true())
    statement = upsert(connection, image_scores).from_select(["image_id", "value", "error", *fixed], rows)
    new, old = statement.excluded, image_scores.c
    # A value that was to be replaced and could not be stays, with what made it.
    kept = old.value.is_not(None) if keep_values else old.rescore.is_not(None)
    keeps = and_(kept, new.value.is_(None))
    statement = statement.on_conflict_do_update(
        index_elements=["image_id", "metric"],
        set_={
            "attempts": old.attempts + 1,
            "rescore": case((keeps, old.rescore), else_=None),
            **{name: case((keeps, old[name]), else_=new[name]) for name in ("value", "scorer")},
            **{name: new[name] for name in ("error", "scored_at")},
        },
    )
    connection.execute(statement)


def _scores_relation(connection: Connection, scores: Sequence[ScoredImage]) -> sa.FromClause:
    """Return the scores as a relation of image_id, value and error, so that one statement writes them all."""
    rows = [{"image_id": s.image_id.hex, "value": s.value, "error": s.error} for s in scores]
    # An existing NUMERIC column keeps every digit, which it would not of a FLOAT.
    columns: dict[str, Any] = {"image_id": sa.Uuid, "value": sa.Numeric(asdecimal=False), "error": sa.Text}
    if connection.dialect.name == "postgresql":
        typed = [sa.column(name, kind) for name, kind in columns.items()]
        relation = func.json_to_recordset(sa.cast(rows, sa.JSON)).table_valued(*typed, name="given")
        return relation.render_derived(with_types=True)
    entry = func.json_each(json.dumps(rows)).table_valued("value", name="each").c.value
    fields = {name: sa.type_coerce(func.json_extract(entry, f"$.{name}"), kind) for name, kind in columns.items()}
    return select(*(field.label(name) for name, field in fields.items())).subquery("given")


@dataclass(frozen=True)
class RescoreRequest:
    """The effect of a rescore request: how many scores are replaced and how many failures retried."""

    replaced: int = 0
    retried: int = 0


def request_rescore(
    connection: Connection,
    metric: Metric,
    run_ids: Collection[UUID],
    failed: bool,
    settings: Settings,
    only_count: bool = False,
) -> RescoreRequest:
    """Request that the metric of these sweeps (or of all) is computed again; with `failed`, only where it failed.

    An existing score stays until its new one is measured. With `only_count` nothing is requested.
    """
    images = bench_run_results.c
    scope = [in_model_set(settings.models)] + ([images.run_id.in_(list(run_ids))] if run_ids else [])
    every = select(images.id).where(*scope)
    to_replace = has_outcome(metric.name, image_scores.c.rescore.is_not(None))
    lacking = every.where(or_(metric_value(metric.name).is_(None), to_replace))
    failed_before = image_scores.c.error.is_not(None), image_scores.c.attempts > 0
    of_metric = image_scores.c.metric == metric.name, image_scores.c.image_id.in_(lacking)
    failures = select(func.count()).where(*failed_before, *of_metric)
    scored = select(images.id).where(metric_value(metric.name).is_not(None), *scope)
    replaced = 0 if failed else connection.scalar(select(func.count()).select_from(scored.subquery())) or 0
    answer = RescoreRequest(replaced, connection.scalar(failures) or 0)
    if only_count:
        return answer
    try_again = update(image_scores).where(*failed_before).values(attempts=0)
    connection.execute(try_again.where(*of_metric))
    if metric.reads:
        of_images = image_scores.c.image_id.in_(lacking if failed else every)
        connection.execute(try_again.where(image_scores.c.metric == EMBEDDING_METRIC, of_images))
    if not failed:
        row = {"metric": metric.name, "attempts": 0, "scorer": "not recorded"}
        row |= dict.fromkeys(("scored_at", "rescore"), utc_now())
        values = (sa.literal(value, image_scores.c[name].type) for name, value in row.items())
        rows = scored.with_only_columns(images.id, metric_value(metric.name), *values)
        statement = upsert(connection, image_scores).from_select(["image_id", "value", *row], rows)
        again = {"rescore": statement.excluded.rescore, "attempts": 0}
        connection.execute(statement.on_conflict_do_update(index_elements=["image_id", "metric"], set_=again))
    return answer


def replace_other_scores(connection: Connection, metric: str, scorer: str, settings: Settings) -> None:
    """Request that scores of a metric without a column that another scorer made are computed again."""
    outcome = image_scores.c
    images = select(bench_run_results.c.id).where(in_model_set(settings.models))
    others = update(image_scores).where(
        outcome.metric == metric, outcome.scorer != scorer, outcome.image_id.in_(images)
    )
    connection.execute(others.values(rescore=utc_now(), attempts=0))


LABEL_MARK = " ["
"""Between an engine's name and its weights."""

SCORES_SCHEMA: dict[str, type] = {
    **dict.fromkeys(("image_id", "run_id", "batch", "engine", "prompt", "category", "complexity"), str),
    **{"steps": int, "guidance": float, "seed": int, "elapsed_ms": int, "image_path": str, "weights": str},
    **{"scheduler": str, "negative_prompt": str, "width": int, "height": int, "created_at": datetime},
    **dict.fromkeys(METRICS, float),
}
"""The columns of `sweep_scores`: one row an image, NULL where a score is missing."""


def _scores_select(prompt: ColumnElement[str | None]) -> Select[Any]:
    images = bench_run_results.c
    values = {name: score_value(name) for name in METRICS} | {"prompt": prompt}
    columns = (values.get(name, images.get(name)) for name in list(SCORES_SCHEMA)[1:])
    return select(images.id.label("image_id"), *columns).order_by(images.batch, images.created_at, images.id)


def _read_frame(connection: Connection, statement: Any) -> pl.DataFrame:
    import polars as pl

    rows = connection.execute(statement)
    texts = [[str(row.image_id), str(row.run_id) if row.run_id else None, *row[2:]] for row in rows]
    return pl.DataFrame(texts, schema=SCORES_SCHEMA, orient="row")


def read_batch(connection: Connection, batch: str) -> pl.DataFrame:
    """Return the batch's images and scores, oldest first, with the prompts of the column `prompt`."""
    return _read_frame(connection, _scores_select(bench_run_results.c.prompt).where(bench_run_results.c.batch == batch))


def summarize_batch(connection: Connection, metric: str, batch: str) -> dict[str, Any]:
    """Return a batch's number of `images` and of `scored`, and the `lowest`, `mean` and `highest` score."""
    value = score_value(metric)
    counts = func.count().label("images"), func.count(value).label("scored")
    bounds = func.min(value).label("lowest"), func.avg(value).label("mean"), func.max(value).label("highest")
    statement = select(*counts, *bounds)
    return dict(connection.execute(statement.where(bench_run_results.c.batch == batch)).one()._mapping)


def read_scores(connection: Connection, settings: Settings, run_ids: Collection[UUID] = ()) -> pl.DataFrame:
    """Return every image with its scores (`SCORES_SCHEMA`), of these sweeps or of all; see `label_engines`."""
    table = _scores_select(prompt_column(settings))
    table = table.where(bench_run_results.c.run_id.in_(list(run_ids))) if run_ids else table
    return label_engines(_read_frame(connection, table))


def label_engines(scores: pl.DataFrame) -> pl.DataFrame:
    """Return the scores with the weights in the name of an engine that several weights were used under.

    As in `realvis_xl [ac93e0dd]` and `realvis_xl [weights unknown]`. The precision is no part of the weights.
    """
    import polars as pl

    used = pl.col("weights").str.replace("/(fp16|bf16)$", "")
    short_hash = used.str.extract("@([0-9a-f]{8})")
    label = pl.coalesce(short_hash, used.str.slice(0, 60), pl.lit("weights unknown"))
    labelled = pl.format("{}" + LABEL_MARK + "{}]", "engine", label)
    return scores.with_columns(engine=pl.when(used.n_unique().over("engine") > 1).then(labelled).otherwise("engine"))
