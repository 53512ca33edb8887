"""Sweeps and images: `bench_runs` and `bench_run_results`. Every function takes a connection in a transaction."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Text, Uuid, delete, func, select, update

from flexy_assets.storage.flexyface import RESULTS, RUNS, describe_run, fit_row
from flexy_assets.storage.sql import upsert, utc_now
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results, bench_runs, image_embeddings, image_scores
from resources.chunks import split_chunks
from resources.errors import BadInputError
from resources.settings import Settings

PLAN_KEYS = {"engine", "prompts", "steps", "seed"}  # of every plan of Flexy


@dataclass(frozen=True)
class SweepRow:
    """A row of `bench_runs`; `plan` is the sweep's settings as written by `sweep.plan`, None without one."""

    id: UUID
    engine: str | None
    target: int | None
    plan: dict[str, Any] | None


def save_sweep(
    connection: Connection, run_id: UUID, engine: str, target: int | None, plan: Mapping[str, Any] | None
) -> None:
    """Add a sweep, or raise its target; one whose images are made one by one has neither target nor plan."""
    values = {"engine": engine, "target": target, "plan": json.dumps(plan, sort_keys=True) if plan else None}
    values = fit_row(connection, RUNS, values | describe_run(engine, target, plan))
    statement = upsert(connection, RUNS).values(id=run_id, created_at=utc_now(), **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def list_sweeps(connection: Connection) -> list[SweepRow]:
    """Return every sweep, oldest first."""
    rows = connection.execute(select(bench_runs).order_by(bench_runs.c.created_at, bench_runs.c.id))
    return [SweepRow(r.id, r.engine, r.target, _parse_plan(r.plan)) for r in rows]


def find_sweep(sweeps: Collection[SweepRow], prefix: str) -> SweepRow:
    """Return the sweep whose id begins with `prefix`. Raises `BadInputError` unless there is exactly one."""
    digits = prefix.lower().replace("-", "")
    matches = [sweep for sweep in sweeps if digits and sweep.id.hex.startswith(digits)]
    if len(matches) != 1:
        cause = "several ids begin with it" if matches else "does not exist"
        raise BadInputError(f"unknown sweep {prefix!r}: {cause}: flexy status lists the sweeps")
    return matches[0]


def _parse_plan(text: str | None) -> dict[str, Any] | None:
    """Return the saved plan; None for anything else that a column of that name holds."""
    try:
        plan = json.loads(text or "")
    except ValueError:
        return None
    return plan if isinstance(plan, dict) and plan.keys() >= PLAN_KEYS else None


def find_existing_images(connection: Connection, image_ids: Collection[UUID]) -> set[UUID]:
    """Return those of `image_ids` that have a row."""
    ids = bench_run_results.c.id
    chunks = split_chunks(list(image_ids), 500)
    return {each for chunk in chunks for each in connection.scalars(select(ids).where(ids.in_(chunk)))}


def recorded_files_of(connection: Connection, image_ids: Collection[UUID]) -> dict[UUID, tuple[str, str | None]]:
    """Return path and SHA-256 of those of `image_ids` that have a row."""
    images, found = bench_run_results.c, {}
    for chunk in split_chunks(list(image_ids), 500):
        rows = select(images.id, images.image_path, images.image_sha256).where(images.id.in_(chunk))
        found.update({image_id: (path or "", sha256) for image_id, path, sha256 in connection.execute(rows)})
    return found


def calls_of(connection: Connection, image_ids: Collection[UUID]) -> dict[UUID, tuple[datetime | None, int | None]]:
    """Return when each image's chunk was recorded, and how many images the call had that made it."""
    images, found = bench_run_results.c, {}
    for chunk in split_chunks(list(image_ids), 500):
        rows = select(images.id, images.created_at, images.images_in_call).where(images.id.in_(chunk))
        found.update({image_id: (created_at, size) for image_id, created_at, size in connection.execute(rows)})
    return found


def replace_image(connection: Connection, row: Mapping[str, Any]) -> None:
    """Record what an image that was made again is now, and on what, and delete the scores of the lost one."""
    delete_measurements(connection, [row["id"]])
    values = {name: value for name, value in row.items() if name not in ("id", "run_id", "image_path")}
    values |= dict.fromkeys(METRIC_COLUMNS) | {"metrics_status": "pending", "metrics_updated_at": utc_now()}
    connection.execute(update(RESULTS).where(RESULTS.c.id == row["id"]).values(fit_row(connection, RESULTS, values)))


def delete_measurements(connection: Connection, image_ids: Collection[UUID], only_failed: bool = False) -> None:
    """Delete scores, failures and embeddings of images; with `only_failed` the failures alone: they are tried again."""
    for chunk in split_chunks(list(image_ids), 500):
        scores = delete(image_scores).where(image_scores.c.image_id.in_(chunk))
        connection.execute(scores.where(image_scores.c.value.is_(None)) if only_failed else scores)
        if not only_failed:
            connection.execute(delete(image_embeddings).where(image_embeddings.c.image_id.in_(chunk)))


def delete_images(connection: Connection, image_ids: Collection[UUID]) -> int:
    """Delete rows with all that was measured of them; return how many there were."""
    delete_measurements(connection, image_ids)
    rows = (delete(RESULTS).where(RESULTS.c.id.in_(chunk)) for chunk in split_chunks(list(image_ids), 500))
    return sum(connection.execute(statement).rowcount for statement in rows)


def record_weights(connection: Connection, engine: str, weights: str) -> int:
    """Record what made the engine's images of unknown weights; return how many there were."""
    unknown = bench_run_results.c.engine == engine, bench_run_results.c.weights.is_(None)
    return connection.execute(update(bench_run_results).where(*unknown).values(weights=weights)).rowcount


def read_timings(connection: Connection, engine: str) -> list[tuple[int, int]]:
    """Return steps and milliseconds of the engine's newest timed images, at most 1,000; empty without a table."""
    images = bench_run_results.c
    if not sa.inspect(connection).has_table(bench_run_results.name):
        return []
    timed = select(images.steps, images.elapsed_ms).where(images.engine == engine, images.elapsed_ms > 0)
    newest = timed.where(images.steps > 0).order_by(images.created_at.desc()).limit(1000)
    return list(connection.execute(newest).tuples())


def add_images(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to `bench_run_results`; one that is already there is left as it is."""
    if rows:
        now = utc_now()
        given = {"created_at": now, "metrics_status": "pending", "metrics_updated_at": now}
        statement = upsert(connection, RESULTS).on_conflict_do_nothing(index_elements=["id"])
        connection.execute(statement, [fit_row(connection, RESULTS, {**given, **row}) for row in rows])


def in_model_set(models: str) -> ColumnElement[bool]:
    """Return the condition for rows that a model set may score: mini models score mini engines' images only."""
    mini = bench_run_results.c.engine.startswith("mini_", autoescape=True)
    return mini if models == "mini" else ~func.coalesce(mini, False)


def prompt_column(settings: Settings, only: str = "") -> ColumnElement[str | None]:
    """Return an image's prompt: from `prompt`, else from the column that the user names; `only` is `TABLE.COLUMN`.

    An image whose prompt could not be recovered has none: FlexyFace's sweeps have a title in that column.
    """
    if only == f"{bench_run_results.name}.prompt" or not (only or settings.prompt_column):
        return bench_run_results.c.prompt
    name, column = only.split(".", 1) if only else settings.prompt_column or ("", "")
    # By a name of its own: the table may be the one that the statement reads already.
    theirs = sa.table(name, sa.column("id", Uuid), sa.column(column, Text)).alias("prompts")
    key = bench_run_results.c.run_id if name == bench_runs.name else bench_run_results.c.id
    named = select(theirs.c[column]).where(theirs.c.id == key)
    if only:
        return named.scalar_subquery().label("prompt")
    not_recovered = named.where(bench_run_results.c.prompt_confidence.is_(None)).scalar_subquery()
    return func.coalesce(bench_run_results.c.prompt, not_recovered).label("prompt")
