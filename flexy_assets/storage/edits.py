"""Queries on the tables of edits. Every function takes a connection in a transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, select, update

from flexy_assets.storage.sql import upsert, utc_now
from flexy_assets.storage.tables import edit_candidates, edit_runs, edit_selections, edit_tasks, image_scores

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class EditTaskRow:
    """A row of `edit_tasks`; `prompt` is the instruction."""

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
    """A row of `edit_candidates` without latents, and its scores: None for one that failed."""

    id: UUID
    task: UUID
    method: str
    budget: int
    name: str
    stage: str
    seed: int
    noise_moves: tuple[tuple[float, int], ...]
    parent: str | None
    strength: float
    stop_step: int
    num_steps: int
    nfe: int
    image_path: str | None
    image_sha256: str | None
    error: str | None
    elapsed_ms: int | None
    images_in_call: int | None
    scores: Mapping[str, float | None]

    @property
    def finished(self) -> bool:
        """Whether all its steps were run; else it is a preview."""
        return self.stop_step == self.num_steps


_COLUMN_NAMES = {"noise_moves": "moves", "stop_step": "until", "num_steps": "path"}
"""Columns of `edit_candidates` that have other names in the code."""

_CANDIDATES_WITH_TASKS = edit_candidates.join(edit_tasks, edit_tasks.c.id == edit_candidates.c.task)
_SCORES_WITH_TASKS = _CANDIDATES_WITH_TASKS.join(image_scores, image_scores.c.image_id == edit_candidates.c.id)


def candidate_id(task: UUID, method: str, budget: int, name: str, until: int) -> UUID:
    """Return the id of a candidate; the same candidate always has the same id."""
    return uuid5(task, f"{method}/{budget}/{name}/{until}")


def save_comparison(
    connection: Connection, run_id: UUID, plan: Mapping[str, Any], tasks: Sequence[EditTaskRow]
) -> None:
    """Add a comparison with its tasks; an existing one stays unchanged."""
    row = {"id": run_id, "plan": json.dumps(plan, sort_keys=True), "created_at": utc_now()}
    connection.execute(upsert(connection, edit_runs).on_conflict_do_nothing(), row)
    connection.execute(upsert(connection, edit_tasks).on_conflict_do_nothing(), [asdict(task) for task in tasks])


def comparison_plan(connection: Connection, run_id: UUID) -> dict[str, Any] | None:
    """Return a comparison's plan as it was saved; None for an unknown id."""
    text = connection.scalar(select(edit_runs.c.plan).where(edit_runs.c.id == run_id))
    return json.loads(text) if text else None


def comparison_ids(connection: Connection) -> list[UUID]:
    """Return the ids of all comparisons, oldest first; runs of inpainting are none."""
    has_edit_tasks = exists().where(edit_tasks.c.run_id == edit_runs.c.id, edit_tasks.c.label_task.is_(None))
    ids = select(edit_runs.c.id).where(has_edit_tasks)
    return list(connection.scalars(ids.order_by(edit_runs.c.created_at, edit_runs.c.id)))


def edit_tasks_of(connection: Connection, batches: Collection[str]) -> list[EditTaskRow]:
    """Return the tasks of these partitions, in order."""
    columns = [edit_tasks.c[field.name] for field in fields(EditTaskRow)]
    rows = select(*columns).where(edit_tasks.c.batch.in_(batches)).order_by(edit_tasks.c.batch, edit_tasks.c.position)
    return [EditTaskRow(*row) for row in connection.execute(rows)]


def edit_candidates_of(connection: Connection, batches: Collection[str], method: str) -> list[CandidateRow]:
    """Return a method's candidates of these partitions' tasks, with their scores."""
    names = [field.name for field in fields(CandidateRow) if field.name != "scores"]
    matches = edit_tasks.c.batch.in_(batches), edit_candidates.c.method == method
    outcomes = select(image_scores.c.image_id, image_scores.c.metric, image_scores.c.value)
    scores: dict[UUID, dict[str, float | None]] = {}
    for image_id, metric, value in connection.execute(outcomes.select_from(_SCORES_WITH_TASKS).where(*matches)):
        scores.setdefault(image_id, {})[metric] = value
    columns = [edit_candidates.c[_COLUMN_NAMES.get(name, name)].label(name) for name in names]
    query = select(*columns).select_from(_CANDIDATES_WITH_TASKS).where(*matches)
    candidates = []
    for row in connection.execute(query.order_by(edit_candidates.c.created_at)):
        moves = tuple((t, seed) for t, seed in json.loads(row.noise_moves))
        candidates.append(CandidateRow(**row._asdict() | {"noise_moves": moves}, scores=scores.get(row.id, {})))
    return candidates


def count_denoising_steps(connection: Connection, run_id: UUID) -> int:
    """Return the denoising steps that were run for a comparison."""
    total = select(func.sum(edit_candidates.c.nfe)).select_from(_CANDIDATES_WITH_TASKS)
    return int(connection.scalar(total.where(edit_tasks.c.run_id == run_id)) or 0)


def candidates_scored_by(connection: Connection, batches: Collection[str], metric: str, scorer: str) -> set[UUID]:
    """Return the candidates of these partitions' tasks that this scorer has scored by the metric."""
    outcome = image_scores.c
    scored = edit_tasks.c.batch.in_(batches), outcome.metric == metric, outcome.value.is_not(None)
    ids = select(edit_candidates.c.id).select_from(_SCORES_WITH_TASKS).where(*scored, outcome.scorer == scorer)
    return set(connection.scalars(ids))


def latents_of(connection: Connection, candidate_ids: Collection[UUID]) -> dict[UUID, bytes]:
    """Return the latents from which previews can be continued, for those that still have them."""
    candidate = edit_candidates.c
    stored = candidate.id.in_(list(candidate_ids)), candidate.latents.is_not(None)
    return dict(connection.execute(select(candidate.id, candidate.latents).where(*stored)).tuples().all())


def add_candidates(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows of `edit_candidates`; existing ones stay unchanged."""
    encoded = [{"created_at": utc_now(), **row, "moves": json.dumps(row["moves"])} for row in rows]
    if encoded:
        connection.execute(upsert(connection, edit_candidates).on_conflict_do_nothing(), encoded)


def record_scoring_time(connection: Connection, candidate_ids: Collection[UUID], milliseconds: float) -> None:
    """Add the time that scoring took to each of these candidates."""
    rows = update(edit_candidates).where(edit_candidates.c.id.in_(list(candidate_ids)))
    spent = func.coalesce(edit_candidates.c.scored_ms, 0)
    connection.execute(rows.values(scored_ms=spent + round(milliseconds)))


def record_selections(connection: Connection, winners: Iterable[CandidateRow]) -> None:
    """Store each search's winner, and delete the latents of its previews."""
    for winner in winners:
        row = {"task": winner.task, "method": winner.method, "budget": winner.budget}
        values = {"candidate": winner.id, "selected_at": utc_now()}
        statement = upsert(connection, edit_selections).values(row | values)
        connection.execute(statement.on_conflict_do_update(index_elements=list(row), set_=values))
        of_search = and_(*(edit_candidates.c[name] == value for name, value in row.items()))
        connection.execute(update(edit_candidates).where(of_search).values(latents=None))


def selections_of(connection: Connection, batches: Collection[str]) -> dict[UUID, UUID]:
    """Return the selected candidate of each task of these partitions that has one."""
    selected = select(edit_selections.c.task, edit_selections.c.candidate).join(edit_tasks)
    return dict(connection.execute(selected.where(edit_tasks.c.batch.in_(batches))).tuples().all())


def select_candidate(connection: Connection, winner: CandidateRow) -> None:
    """Make a candidate its task's only winner, of whichever method; an unchanged selection keeps its time."""
    selected = select(edit_selections.c.candidate).where(edit_selections.c.task == winner.task)
    if list(connection.scalars(selected)) != [winner.id]:
        connection.execute(delete(edit_selections).where(edit_selections.c.task == winner.task))
        record_selections(connection, [winner])


def selected_candidates(connection: Connection, batches: Collection[str]) -> dict[str, int]:
    """Return the number of winners of each of these partitions."""
    batch = edit_tasks.c.batch
    counts = select(batch, func.count()).join(edit_selections, edit_tasks.c.id == edit_selections.c.task)
    return dict(connection.execute(counts.where(batch.in_(batches)).group_by(batch)).tuples().all())


EDIT_CANDIDATES_SCHEMA: dict[str, type] = {
    **dict.fromkeys(("candidate_id", "run", "batch", "task_id", "prompt", "source_path"), str),
    **{"method": str, "budget": int, "name": str, "stage": str, "parent": str},
    **{"strength": float, "seed": int, "noise_moves": str},
    **dict.fromkeys(("stop_step", "num_steps", "nfe", "elapsed_ms", "scored_ms"), int),
    **{"image_path": str, "error": str, "chosen": bool},
}
"""The columns of `edit_scores` without its metrics: one row per candidate and previewed or last step."""


def edit_scores_table(connection: Connection, run_ids: Collection[UUID], metrics: Sequence[str]) -> pl.DataFrame:
    """Return every candidate of these comparisons (`EDIT_CANDIDATES_SCHEMA`) with its scores, null where missing."""
    import polars as pl

    sources: dict[str, ColumnElement[Any]] = {
        "candidate_id": edit_candidates.c.id,
        "run": edit_tasks.c.run_id,
        "batch": edit_tasks.c.batch,
        "task_id": edit_tasks.c.name,
        "prompt": edit_tasks.c.prompt,
        "source_path": edit_tasks.c.image_path,
        "chosen": edit_selections.c.candidate.is_not(None),
    }
    columns = [
        (sources[name] if name in sources else edit_candidates.c[_COLUMN_NAMES.get(name, name)]).label(name)
        for name in EDIT_CANDIDATES_SCHEMA
    ]
    of_runs = edit_tasks.c.run_id.in_(list(run_ids))
    order = [edit_candidates.c[name] for name in ("method", "budget", "created_at", "name")]
    rows = (
        select(*columns)
        .select_from(_CANDIDATES_WITH_TASKS)
        .outerjoin(edit_selections, edit_selections.c.candidate == edit_candidates.c.id)
        .where(of_runs)
        .order_by(edit_tasks.c.batch, edit_tasks.c.position, *order)
    )
    outcomes = select(image_scores.c.image_id, image_scores.c.metric, image_scores.c.value)
    outcomes = outcomes.select_from(_SCORES_WITH_TASKS).where(of_runs, image_scores.c.metric.in_(metrics))
    scores = {(image, metric): value for image, metric, value in connection.execute(outcomes)}
    candidates = [
        [str(row[0]), str(row[1]), *row[2:], *(scores.get((row[0], metric)) for metric in metrics)]
        for row in connection.execute(rows)
    ]
    return pl.DataFrame(candidates, schema=EDIT_CANDIDATES_SCHEMA | dict.fromkeys(metrics, float), orient="row")
