"""What is asked of the tables of edits and written to them. Every function takes a connection in a transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, select, update

from flexy_assets.storage.sql import upsert, utc_now
from flexy_assets.storage.tables import (
    edit_candidates,
    edit_runs,
    edit_selections,
    edit_tasks,
    image_scores,
)

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class EditTaskRow:
    """A row of `edit_tasks`."""

    id: UUID
    run_id: UUID
    batch: str
    position: int
    name: str
    prompt: str
    image_path: str
    image_sha256: str
    label_task: UUID | None = None
    mask_path: str | None = None
    mask_sha256: str | None = None
    reference_path: str | None = None
    reference_sha256: str | None = None
    label_digest: str | None = None


@dataclass(frozen=True)
class CandidateRow:
    """A row of `edit_candidates` without its latents, and the outcomes of its scores: None for one that failed."""

    id: UUID
    task: UUID
    method: str
    budget: int
    name: str
    stage: str
    seed: int
    moves: tuple[tuple[float, int], ...]
    parent: str | None
    strength: float
    until: int
    path: int
    nfe: int
    image_path: str | None
    image_sha256: str | None
    error: str | None
    elapsed_ms: int | None
    images_in_call: int | None
    scores: Mapping[str, float | None]


def candidate_id(task: UUID, method: str, budget: int, name: str, until: int) -> UUID:
    """The same candidate has the same id, whoever makes it."""
    return uuid5(task, f"{method}/{budget}/{name}/{until}")


def save_comparison(
    connection: Connection, run_id: UUID, plan: Mapping[str, Any], tasks: Sequence[EditTaskRow]
) -> None:
    """Add a comparison with its tasks; one that is there is left as it is."""
    row = {"id": run_id, "plan": json.dumps(plan, sort_keys=True), "created_at": utc_now()}
    connection.execute(upsert(connection, edit_runs).on_conflict_do_nothing(), row)
    connection.execute(upsert(connection, edit_tasks).on_conflict_do_nothing(), [asdict(task) for task in tasks])


def comparison_plan(connection: Connection, run_id: UUID) -> dict[str, Any] | None:
    """A comparison's settings as they were saved; None where there is no such one."""
    text = connection.scalar(select(edit_runs.c.plan).where(edit_runs.c.id == run_id))
    return json.loads(text) if text else None


def comparison_ids(connection: Connection) -> list[UUID]:
    """Every comparison, oldest first; what puts faces right is none."""
    own = exists().where(edit_tasks.c.run_id == edit_runs.c.id, edit_tasks.c.label_task.is_(None))
    return list(connection.scalars(select(edit_runs.c.id).where(own).order_by(edit_runs.c.created_at, edit_runs.c.id)))


def edit_tasks_of(connection: Connection, batches: Collection[str]) -> list[EditTaskRow]:
    """The tasks of these batches, in order."""
    columns = [edit_tasks.c[field.name] for field in fields(EditTaskRow)]
    wanted = select(*columns).where(edit_tasks.c.batch.in_(batches)).order_by(edit_tasks.c.batch, edit_tasks.c.position)
    return [EditTaskRow(*row) for row in connection.execute(wanted)]


def edit_candidates_of(connection: Connection, batches: Collection[str], method: str) -> list[CandidateRow]:
    """A method's candidates of these batches' tasks, with what was measured of them."""
    names = [field.name for field in fields(CandidateRow) if field.name != "scores"]
    mine = edit_candidates.join(edit_tasks, edit_tasks.c.id == edit_candidates.c.task)
    chosen = and_(edit_tasks.c.batch.in_(batches), edit_candidates.c.method == method)
    outcomes = select(image_scores.c.image_id, image_scores.c.metric, image_scores.c.value).join_from(
        image_scores, mine, image_scores.c.image_id == edit_candidates.c.id
    )
    scores: dict[UUID, dict[str, float | None]] = {}
    for image_id, metric, value in connection.execute(outcomes.where(chosen)):
        scores.setdefault(image_id, {})[metric] = value
    rows = select(*(edit_candidates.c[name] for name in names)).select_from(mine).where(chosen)
    found = [row._asdict() for row in connection.execute(rows.order_by(edit_candidates.c.created_at))]
    return [
        CandidateRow(
            **row | {"moves": tuple((t, seed) for t, seed in json.loads(row["moves"]))},
            scores=scores.get(row["id"], {}),
        )
        for row in found
    ]


def candidates_scored_by(connection: Connection, batches: Collection[str], metric: str, scorer: str) -> set[UUID]:
    """The candidates of these batches' tasks that this scorer has given a value of the metric."""
    mine = image_scores.join(edit_candidates, edit_candidates.c.id == image_scores.c.image_id)
    scored = and_(
        edit_tasks.c.batch.in_(batches),
        image_scores.c.metric == metric,
        image_scores.c.scorer == scorer,
        image_scores.c.value.is_not(None),
    )
    found = select(edit_candidates.c.id).select_from(mine.join(edit_tasks, edit_tasks.c.id == edit_candidates.c.task))
    return set(connection.scalars(found.where(scored)))


def latents_of(connection: Connection, candidate_ids: Collection[UUID]) -> dict[UUID, bytes]:
    """What previews can be carried on from, for those that still have it."""
    there = select(edit_candidates.c.id, edit_candidates.c.latents).where(
        edit_candidates.c.id.in_(list(candidate_ids)), edit_candidates.c.latents.is_not(None)
    )
    return {row.id: row.latents for row in connection.execute(there)}


def add_candidates(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows of `edit_candidates`; of one that is already there only the first counts."""
    encoded = [{"created_at": utc_now(), **row, "moves": json.dumps(row["moves"])} for row in rows]
    if encoded:
        connection.execute(upsert(connection, edit_candidates).on_conflict_do_nothing(), encoded)


def record_scoring_time(connection: Connection, candidate_ids: Collection[UUID], milliseconds: float) -> None:
    """Add what measuring took to each of these candidates."""
    of_these = update(edit_candidates).where(edit_candidates.c.id.in_(list(candidate_ids)))
    spent = func.coalesce(edit_candidates.c.scored_ms, 0)
    connection.execute(of_these.values(scored_ms=spent + round(milliseconds)))


def record_selections(connection: Connection, chosen: Iterable[CandidateRow]) -> None:
    """Keep each search's winner, and let go of the latents of its task's previews."""
    for one in chosen:
        row = {"task": one.task, "method": one.method, "budget": one.budget}
        values = {"candidate": one.id, "selected_at": utc_now()}
        statement = upsert(connection, edit_selections).values(row | values)
        connection.execute(statement.on_conflict_do_update(index_elements=list(row), set_=values))
        mine = and_(*(edit_candidates.c[name] == value for name, value in row.items()))
        connection.execute(update(edit_candidates).where(mine).values(latents=None))


def unselect_task(connection: Connection, task: UUID) -> None:
    """Let go of a task's winners."""
    connection.execute(delete(edit_selections).where(edit_selections.c.task == task))


def select_candidate(connection: Connection, chosen: CandidateRow) -> None:
    """Keep a task's only winner, whichever method's it is; one that is kept already stays as it is."""
    mine = edit_selections.c.task == chosen.task
    if list(connection.scalars(select(edit_selections.c.candidate).where(mine))) != [chosen.id]:
        unselect_task(connection, chosen.task)
        record_selections(connection, [chosen])


def selected_candidates(connection: Connection, batches: Collection[str]) -> dict[str, int]:
    """How many winners each of these batches has."""
    mine = edit_selections.join(edit_tasks, edit_tasks.c.id == edit_selections.c.task)
    counted = select(edit_tasks.c.batch, func.count()).select_from(mine).where(edit_tasks.c.batch.in_(batches))
    return dict(connection.execute(counted.group_by(edit_tasks.c.batch)).tuples().all())


EDIT_CANDIDATES_SCHEMA: dict[str, type] = {
    "candidate_id": str,
    "run": str,
    "batch": str,
    "task_id": str,
    "prompt": str,
    "source_path": str,
    "method": str,
    "budget": int,
    "name": str,
    "stage": str,
    "parent": str,
    "strength": float,
    "seed": int,
    "moves": str,
    "until": int,
    "path": int,
    "nfe": int,
    "elapsed_ms": int,
    "scored_ms": int,
    "image_path": str,
    "error": str,
    "chosen": bool,
}
"""The columns of `edit_scores` beside its metrics: one row a candidate and step that was looked at."""


def edit_scores_table(connection: Connection, run_ids: Collection[UUID], metrics: Sequence[str]) -> pl.DataFrame:
    """Every candidate of these comparisons (`CANDIDATES`) with its scores, NULL where one is missing."""
    import polars as pl

    own: dict[str, ColumnElement[Any]] = {
        "candidate_id": edit_candidates.c.id,
        "run": edit_tasks.c.run_id,
        "batch": edit_tasks.c.batch,
        "task_id": edit_tasks.c.name,
        "prompt": edit_tasks.c.prompt,
        "source_path": edit_tasks.c.image_path,
        "chosen": edit_selections.c.candidate.is_not(None),
    }
    columns = [(own[name] if name in own else edit_candidates.c[name]).label(name) for name in EDIT_CANDIDATES_SCHEMA]
    selected = edit_selections.c.candidate == edit_candidates.c.id
    rows = (
        select(*columns)
        .join_from(edit_candidates, edit_tasks, edit_tasks.c.id == edit_candidates.c.task)
        .outerjoin(edit_selections, selected)
        .where(edit_tasks.c.run_id.in_(list(run_ids)))
        .order_by(
            edit_tasks.c.batch,
            edit_tasks.c.position,
            edit_candidates.c.method,
            edit_candidates.c.budget,
            edit_candidates.c.created_at,
            edit_candidates.c.name,
        )
    )
    found = [[str(row[0]), str(row[1]), *row[2:]] for row in connection.execute(rows)]
    outcomes = (
        select(image_scores.c.image_id, image_scores.c.metric, image_scores.c.value)
        .join(edit_candidates, edit_candidates.c.id == image_scores.c.image_id)
        .join(edit_tasks, edit_tasks.c.id == edit_candidates.c.task)
        .where(edit_tasks.c.run_id.in_(list(run_ids)), image_scores.c.metric.in_(metrics))
    )
    scores = {(str(image), metric): value for image, metric, value in connection.execute(outcomes)}
    schema = EDIT_CANDIDATES_SCHEMA | dict.fromkeys(metrics, float)
    return pl.DataFrame(
        [[*row, *(scores.get((row[0], metric)) for metric in metrics)] for row in found], schema=schema, orient="row"
    )
