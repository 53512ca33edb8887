"""What is asked of the tables and written to them. Every function takes a connection in a transaction."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    Integer,
    Table,
    and_,
    bindparam,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from flexy_assets.storage.tables import (
    SWEEP_METRICS,
    bench_run_results,
    bench_runs,
    image_embeddings,
    image_scores,
    text_embeddings,
)
from resources.models.registry import METRICS

MAX_ATTEMPTS = 3
"""How often an image is offered to a scorer that fails on it, before it is left for a person."""

EMBEDDING = "clip_embedding"
"""The name under which `image_scores` keeps the failures of embedding an image."""


@dataclass(frozen=True)
class Run:
    """A row of `bench_runs`; `plan` is the sweep's settings as written by `sweep.plan`, None for an adopted run."""

    id: UUID
    engine: str | None
    target: int | None
    plan: dict[str, Any] | None


@dataclass(frozen=True)
class Pending:
    """An image a metric is still missing for."""

    image_id: UUID
    prompt: str | None
    image_path: str | None
    image_sha256: str | None


@dataclass(frozen=True)
class Scored:
    """What a scorer says of one image: a finite value, or the reason there is none."""

    image_id: UUID
    value: float | None
    error: str | None = None

    @classmethod
    def of(cls, image_id: UUID, value: float) -> Scored:
        """A measured value; NaN and infinity are failures."""
        if math.isfinite(value):
            return cls(image_id, float(value))
        return cls(image_id, None, f"the scorer returned {value}")


def now() -> datetime:
    """The time in UTC, without a zone, as FlexyFace's TIMESTAMP columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


def _insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows ON CONFLICT, which each database spells in its own dialect."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table)


# Runs and images


def save_run(connection: Connection, run_id: UUID, engine: str, target: int, plan: Mapping[str, Any]) -> None:
    """Add a run, or raise the target of one that is there (its plan's settings stay comparable by the caller)."""
    values = {"engine": engine, "target": target, "plan": json.dumps(plan, sort_keys=True)}
    statement = _insert(connection, bench_runs).values(id=run_id, created_at=now(), **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def runs(connection: Connection) -> list[Run]:
    """Every run, oldest first."""
    rows = connection.execute(select(bench_runs).order_by(bench_runs.c.created_at, bench_runs.c.id))
    return [Run(r.id, r.engine, r.target, json.loads(r.plan) if r.plan else None) for r in rows]


def made(connection: Connection, image_ids: Collection[UUID]) -> set[UUID]:
    """Those of `image_ids` whose row is there."""
    wanted, found = list(image_ids), set()
    for start in range(0, len(wanted), 500):
        ids = select(bench_run_results.c.id).where(bench_run_results.c.id.in_(wanted[start : start + 500]))
        found |= set(connection.scalars(ids))
    return found


def add_images(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to `bench_run_results`; one that is already there is left as it is."""
    if not rows:
        return
    statement = _insert(connection, bench_run_results).on_conflict_do_nothing(index_elements=["id"])
    connection.execute(statement, [{"created_at": now(), **row} for row in rows])


def images_of_batch(connection: Connection, batch: str) -> pl.DataFrame:
    """The batch's images and scores, oldest first."""
    return _frame(connection, _table.where(bench_run_results.c.batch == batch))


# Scores


def _of_models(models: str) -> ColumnElement[bool]:
    """The rows a model set may score: mini models score mini engines' images and no others."""
    mini = bench_run_results.c.engine.startswith("mini_", autoescape=True)
    return mini if models == "mini" else ~func.coalesce(mini, False)


def _value(metric: str) -> ColumnElement[float | None]:
    """An image's value of `metric`: its column, or what `image_scores` holds of a metric that has none."""
    if metric in SWEEP_METRICS:
        return bench_run_results.c[metric]
    kept = image_scores.alias(f"kept_{metric}")
    return (
        select(kept.c.value)
        .where(kept.c.image_id == bench_run_results.c.id, kept.c.metric == metric)
        .scalar_subquery()
        .label(metric)
    )


def pending(connection: Connection, metric: str, batch: str, models: str) -> list[Pending]:
    """The batch's images with no `metric` yet that have not been given up, oldest first."""
    images = bench_run_results
    outcome = and_(image_scores.c.image_id == images.c.id, image_scores.c.metric == metric)
    # A score that somebody set back to NULL is missing again, however often it was tried before.
    measured = image_scores.c.value.is_not(None)
    statement = (
        select(images.c.id, images.c.prompt, images.c.image_path, images.c.image_sha256)
        .outerjoin(image_scores, outcome)
        .where(images.c.batch == batch, _value(metric).is_(None), _of_models(models))
        .where(or_(image_scores.c.attempts.is_(None), image_scores.c.attempts < MAX_ATTEMPTS, measured))
        .order_by(images.c.created_at, images.c.id)
    )
    return [Pending(*row) for row in connection.execute(statement)]


def record_scores(connection: Connection, metric: str, scorer: str, scores: Sequence[Scored]) -> int:
    """Write each value to its column, if it has one, and each outcome to `image_scores`.

    Returns how many values were written. A value that is there is never overwritten.
    """
    if not scores:
        return 0
    measured = [s for s in scores if s.value is not None]
    written = len(measured)
    if measured and metric in SWEEP_METRICS:
        column = bench_run_results.c[metric]
        statement = (
            update(bench_run_results)
            .where(bench_run_results.c.id == bindparam("image"), column.is_(None))
            .values({column: bindparam("score", type_=Float)})
        )
        result = connection.execute(statement, [{"image": s.image_id, "score": s.value} for s in measured])
        written = result.rowcount
    _record_outcomes(connection, metric, scorer, scores)
    return written


def _record_outcomes(connection: Connection, metric: str, scorer: str, scores: Sequence[Scored]) -> None:
    statement = _insert(connection, image_scores)
    statement = statement.on_conflict_do_update(
        index_elements=["image_id", "metric"],
        set_={
            "attempts": image_scores.c.attempts + 1,
            **{name: statement.excluded[name] for name in ("value", "error", "scorer", "scored_at")},
        },
    )
    moment = now()
    rows = [
        {
            "image_id": s.image_id,
            "metric": metric,
            "value": s.value,
            "error": s.error,
            "attempts": 1,
            "scorer": scorer,
            "scored_at": moment,
        }
        for s in scores
    ]
    connection.execute(statement, rows)


# Embeddings


def prompt_key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def unembedded(connection: Connection, encoder: str, batch: str, models: str) -> list[Pending]:
    """The batch's images without an embedding by `encoder` that have not been given up."""
    images = bench_run_results
    there = and_(image_embeddings.c.image_id == images.c.id, image_embeddings.c.encoder == encoder)
    failed = and_(image_scores.c.image_id == images.c.id, image_scores.c.metric == EMBEDDING)
    statement = (
        select(images.c.id, images.c.prompt, images.c.image_path, images.c.image_sha256)
        .outerjoin(image_embeddings, there)
        .outerjoin(image_scores, failed)
        .where(images.c.batch == batch, image_embeddings.c.image_id.is_(None), _of_models(models))
        .where(or_(image_scores.c.attempts.is_(None), image_scores.c.attempts < MAX_ATTEMPTS))
        .order_by(images.c.created_at, images.c.id)
    )
    return [Pending(*row) for row in connection.execute(statement)]


def record_image_embeddings(
    connection: Connection, encoder: str, vectors: Mapping[UUID, NDArray[np.float32]], failures: Sequence[Scored]
) -> None:
    """Keep L2-normalised float32 vectors (width,) and, for images without one, the reason."""
    if vectors:
        rows = [{"image_id": k, "encoder": encoder, "vector": v.astype("<f4").tobytes()} for k, v in vectors.items()]
        connection.execute(_insert(connection, image_embeddings).on_conflict_do_nothing(), rows)
    if failures:
        _record_outcomes(connection, EMBEDDING, encoder, failures)


def embedding_failures(connection: Connection, image_ids: Collection[UUID]) -> dict[UUID, str]:
    """Why images have no embedding, for those that were tried."""
    statement = select(image_scores.c.image_id, image_scores.c.error).where(
        image_scores.c.metric == EMBEDDING, image_scores.c.image_id.in_(list(image_ids)), image_scores.c.value.is_(None)
    )
    return {row.image_id: row.error for row in connection.execute(statement)}


def record_text_embeddings(connection: Connection, encoder: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Keep the L2-normalised float32 vector (width,) of each prompt."""
    rows = [
        {"prompt_sha256": prompt_key(k), "encoder": encoder, "vector": v.astype("<f4").tobytes()}
        for k, v in vectors.items()
    ]
    if rows:
        connection.execute(_insert(connection, text_embeddings).on_conflict_do_nothing(), rows)


def image_vectors(connection: Connection, encoder: str, image_ids: Collection[UUID]) -> dict[UUID, NDArray[np.float32]]:
    """The embeddings there are of `image_ids`, each float32 (width,)."""
    found = image_embeddings.c
    statement = select(found.image_id, found.vector).where(
        found.encoder == encoder, found.image_id.in_(list(image_ids))
    )
    return {row.image_id: np.frombuffer(row.vector, "<f4") for row in connection.execute(statement)}


def text_vectors(connection: Connection, encoder: str, prompts: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """The embeddings there are of `prompts`, each float32 (width,)."""
    keys = {prompt_key(prompt): prompt for prompt in prompts}
    found = text_embeddings.c
    statement = select(found.prompt_sha256, found.vector).where(
        found.encoder == encoder, found.prompt_sha256.in_(list(keys))
    )
    return {keys[row.prompt_sha256]: np.frombuffer(row.vector, "<f4") for row in connection.execute(statement)}


# Tables for people

SCORES_SCHEMA = {
    "image_id": pl.String,
    "run_id": pl.String,
    "batch": pl.String,
    "engine": pl.String,
    "prompt": pl.String,
    "steps": pl.Int64,
    "guidance": pl.Float64,
    "seed": pl.Int64,
    "elapsed_ms": pl.Int64,
    "image_path": pl.String,
    **dict.fromkeys(METRICS, pl.Float64),
}
"""The columns of `sweep_scores`: one row an image, NULL where a score is missing."""

_table = select(
    bench_run_results.c.id.label("image_id"),
    *(_value(name) if name in METRICS else bench_run_results.c[name] for name in list(SCORES_SCHEMA)[1:]),
).order_by(bench_run_results.c.batch, bench_run_results.c.created_at, bench_run_results.c.id)


def _frame(connection: Connection, statement: Any) -> pl.DataFrame:
    rows = [
        [str(row.image_id), str(row.run_id) if row.run_id else None, *row[2:]] for row in connection.execute(statement)
    ]
    return pl.DataFrame(rows, schema=SCORES_SCHEMA, orient="row")


def scores(connection: Connection, run_ids: Collection[UUID] = ()) -> pl.DataFrame:
    """Every image with its scores (`SCORES_SCHEMA`), of these runs or of all."""
    return _frame(connection, _table.where(bench_run_results.c.run_id.in_(list(run_ids))) if run_ids else _table)


CSV_COLUMNS = ("steps", "guidance", *SWEEP_METRICS, "elapsed_ms", "seed")


def csv_rows(connection: Connection, run_ids: Collection[UUID] = ()) -> list[tuple[Any, ...]]:
    """FlexyFace's export: images with all four scores, by steps and guidance (then id, so that ties stand still)."""
    images = bench_run_results.c
    statement = select(*(images[name] for name in CSV_COLUMNS))
    statement = statement.where(*(images[name].is_not(None) for name in SWEEP_METRICS))
    if run_ids:
        statement = statement.where(images.run_id.in_(list(run_ids)))
    # Postgres puts NULL last by itself, SQLite first.
    order = (images.steps.nulls_last(), images.guidance.nulls_last(), images.id)
    return [tuple(row) for row in connection.execute(statement.order_by(*order))]


def last_failure(connection: Connection, run_id: UUID) -> str | None:
    """Why the run's last score to fail is missing."""
    statement = (
        select(image_scores.c.error)
        .join(bench_run_results, image_scores.c.image_id == bench_run_results.c.id)
        .where(bench_run_results.c.run_id == run_id, image_scores.c.value.is_(None))
        .order_by(image_scores.c.scored_at.desc())
    )
    return connection.scalars(statement.limit(1)).first()


def status(connection: Connection) -> list[dict[str, Any]]:
    """Per run and engine: images, target and, for each metric, scored, missing and failed.

    Failed are those whose last attempt ended in an error; missing are the rest without a value.
    """
    images = bench_run_results
    counts: list[Column[Any] | ColumnElement[Any]] = [images.c.run_id, images.c.engine, func.count().label("images")]
    counts += [func.count(_value(name)).label(name) for name in METRICS]
    grouped = connection.execute(select(*counts).group_by(images.c.run_id, images.c.engine)).all()

    failures = connection.execute(
        select(images.c.run_id, images.c.engine, image_scores.c.metric, func.count().cast(Integer))
        .join(image_scores, image_scores.c.image_id == images.c.id)
        .where(image_scores.c.value.is_(None))
        # Somebody else may have filled the column since.
        .where(or_(*(and_(image_scores.c.metric == name, _value(name).is_(None)) for name in METRICS)))
        .group_by(images.c.run_id, images.c.engine, image_scores.c.metric)
    )
    failed = {(run_id, engine, metric): count for run_id, engine, metric, count in failures}
    known = {run.id: run for run in runs(connection)}
    table = [
        {
            "run": str(row.run_id) if row.run_id else None,
            "engine": row.engine,
            "images": row.images,
            "target": known[row.run_id].target if row.run_id in known else None,
        }
        | {
            name: {
                "scored": getattr(row, name),
                "missing": row.images - getattr(row, name) - failed.get((row.run_id, row.engine, name), 0),
                "failed": failed.get((row.run_id, row.engine, name), 0),
            }
            for name in METRICS
        }
        for row in grouped
    ]
    begun = {row.run_id for row in grouped}
    nothing = {name: {"scored": 0, "missing": 0, "failed": 0} for name in METRICS}
    table += [
        {"run": str(run.id), "engine": run.engine, "images": 0, "target": run.target} | nothing
        for run in known.values()
        if run.id not in begun
    ]
    order = {str(run_id): place for place, run_id in enumerate(known)}
    return sorted(table, key=lambda entry: (order.get(entry["run"], -1), entry["engine"] or ""))
