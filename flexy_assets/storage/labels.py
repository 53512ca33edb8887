"""What is asked of the tables of labels and written to them. Every function takes a connection in a transaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

import polars as pl
from sqlalchemy import Connection, Row, case, func, or_, select, text, update

from flexy_assets.storage.sql import upsert, utc_now
from flexy_assets.storage.tables import (
    edit_candidates,
    edit_runs,
    edit_selections,
    edit_tasks,
    face_swaps,
    image_scores,
    label_pictures,
    label_predictions,
    label_tasks,
)
from resources.label_studio.export import ReviewVerdict

PENDING_BATCH = "its pictures are still to be fetched: import it again"
"""The error of a task whose import has not come to it."""

SWAPPED = "swapped"
SKIPPED = "left as it was"
"""The outcomes of a face swap."""

_NAMESPACE = UUID("0c0b6f0e-51ce-5d0e-8f3c-2f4d9a5f6b1e")
_IDS_PER_QUERY = 500
_tasks = label_tasks.c


@dataclass(frozen=True)
class LabelTaskRow:
    """A row of `label_tasks`. Paths are relative to the image root; all are None where the task has an error."""

    id: UUID
    name: str
    project: int | None
    label_studio_id: int | None
    character_id: str
    character_name: str
    prompt: str
    digest: str
    verdicts: tuple[ReviewVerdict, ...] = ()
    batch: str = ""
    position: int = 0
    image_path: str | None = None
    image_sha256: str | None = None
    mask_path: str | None = None
    mask_sha256: str | None = None
    character_path: str | None = None
    character_sha256: str | None = None
    final_path: str | None = None
    final_sha256: str | None = None
    error: str | None = None

    @property
    def files(self) -> list[str]:
        """The pictures there are."""
        return [path for path in (self.image_path, self.mask_path, self.character_path, self.final_path) if path]


@dataclass(frozen=True)
class SelectedImage:
    """The candidate that was selected for a task last; `plan` is its inpainting plan as it was saved."""

    task: LabelTaskRow
    candidate: UUID
    image_path: str
    image_sha256: str | None
    plan: Mapping[str, Any]
    selected_at: datetime
    scores: Mapping[str, float]


@dataclass(frozen=True)
class SentPrediction:
    """A row of `label_predictions`."""

    task: UUID
    model_version: str
    candidate: UUID
    score: float | None
    result: Sequence[Mapping[str, Any]] = ()
    digest: str | None = None
    prediction_id: int | None = None
    outcome: str | None = None
    error: str | None = None
    sent_at: datetime | None = None


def label_task_id(project: int | None, name: str) -> UUID:
    """The same task has the same id, whether it comes from an export or from the server."""
    return uuid5(_NAMESPACE, f"{'' if project is None else project}/{name}")


# Tasks


def label_tasks_of(connection: Connection, batches: Collection[str] | None = None) -> list[LabelTaskRow]:
    """The tasks of these batches, or all, in order."""
    wanted = select(*(_tasks[field.name] for field in fields(LabelTaskRow)))
    if batches is not None:
        wanted = wanted.where(_tasks.batch.in_(batches))
    rows = connection.execute(wanted.order_by(_tasks.created_at, _tasks.batch, _tasks.position))
    return [_task(row) for row in rows]


def label_tasks_by_id(connection: Connection, ids: Collection[UUID]) -> dict[UUID, LabelTaskRow]:
    """These tasks, as far as they are there."""
    found = connection.execute(
        select(*(_tasks[field.name] for field in fields(LabelTaskRow))).where(_tasks.id.in_(ids))
    )
    return {row.id: _task(row) for row in found}


def _task(row: Row[Any]) -> LabelTaskRow:
    return LabelTaskRow(**row._asdict() | {"verdicts": _verdicts(row.verdicts)})


def _verdicts(text: str) -> tuple[ReviewVerdict, ...]:
    return tuple(ReviewVerdict(**each | {"choices": tuple(each["choices"])}) for each in json.loads(text))


def _row(task: LabelTaskRow) -> dict[str, Any]:
    return asdict(task) | {"verdicts": json.dumps([asdict(verdict) for verdict in task.verdicts])}


def reserve_batches(connection: Connection, wanted: Sequence[LabelTaskRow], batch_size: int) -> int:
    """Add the tasks that are not there, as pending, in new batches of their project; returns how many."""
    if connection.dialect.name == "postgresql":
        # Two imports at once would both begin the same batch.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('flexy label batches'))"))
    known: set[UUID] = set()
    ids = [task.id for task in wanted]
    for first in range(0, len(ids), _IDS_PER_QUERY):
        known |= set(connection.scalars(select(_tasks.id).where(_tasks.id.in_(ids[first : first + _IDS_PER_QUERY]))))
    batches = connection.scalars(select(_tasks.batch).distinct())
    begun = Counter[str]()
    for batch in batches:
        project, _, index = batch.rpartition("_")
        begun[project] = max(begun[project], int(index) + 1)
    count: Counter[str] = Counter()
    rows = []
    for task in (task for task in wanted if task.id not in known):
        project = "export" if task.project is None else str(task.project)
        place = count[project]
        count[project] += 1
        new = replace(task, batch=f"{project}_{begun[project] + place // batch_size:04d}", position=place % batch_size)
        rows.append(_row(replace(new, error=PENDING_BATCH)) | {"created_at": utc_now(), "updated_at": utc_now()})
    if rows:
        connection.execute(upsert(connection, label_tasks).on_conflict_do_nothing(), rows)
    return len(rows)


def save_label_task(connection: Connection, task: LabelTaskRow) -> None:
    """Write what a task is now; its batch and position stay."""
    values = {name: value for name, value in _row(task).items() if name not in ("id", "batch", "position")}
    connection.execute(update(label_tasks).where(_tasks.id == task.id).values(values | {"updated_at": utc_now()}))


def refresh_label_tasks(connection: Connection, read: Sequence[LabelTaskRow]) -> None:
    """Write what is no part of a task's digest: its verdicts, and its number where it has one."""
    known = {task.id: (task.verdicts, task.label_studio_id) for task in label_tasks_of(connection)}
    for task in read:
        verdicts, number = known.get(task.id, ((), None))
        values = {"verdicts": _row(task)["verdicts"], "label_studio_id": task.label_studio_id or number}
        if task.id in known and (task.verdicts, values["label_studio_id"]) != (verdicts, number):
            connection.execute(update(label_tasks).where(_tasks.id == task.id).values(values))


LABEL_TASKS_SCHEMA: dict[str, Any] = {
    "batch": pl.String,
    "task_id": pl.String,
    "project": pl.Int64,
    "character": pl.String,
    "prompt": pl.String,
    "image_path": pl.String,
    "mask_path": pl.String,
    "character_path": pl.String,
    "final_path": pl.String,
    "verdict": pl.String,
    "error": pl.String,
}
"""The columns of the asset `label_tasks`: one row a task; `verdict` is what people chose, with ` | ` between them."""


def label_tasks_table(found: Sequence[LabelTaskRow]) -> pl.DataFrame:
    """Tasks as `TASKS`."""
    rows = [
        asdict(task)
        | {
            "task_id": task.name,
            "character": task.character_name or task.character_id,
            "verdict": " | ".join(", ".join(verdict.choices) for verdict in task.verdicts) or None,
        }
        for task in found
    ]
    return pl.DataFrame(
        [[row[name] for name in LABEL_TASKS_SCHEMA] for row in rows], schema=LABEL_TASKS_SCHEMA, orient="row"
    )


# Pictures


def stored_pictures(connection: Connection, addresses: Collection[str]) -> dict[str, tuple[str, str]]:
    """Path and SHA-256 of those that were fetched; addresses are given by their SHA-256."""
    there = label_pictures.c
    wanted = select(there.address_sha256, there.path, there.sha256).where(there.address_sha256.in_(addresses))
    return {address: (path, sha256) for address, path, sha256 in connection.execute(wanted)}


def record_picture(connection: Connection, address: str, path: str, sha256: str) -> None:
    """Keep what was fetched from an address, given by its SHA-256."""
    values = {"path": path, "sha256": sha256, "fetched_at": utc_now()}
    statement = upsert(connection, label_pictures).values(values | {"address_sha256": address})
    connection.execute(statement.on_conflict_do_update(index_elements=["address_sha256"], set_=values))


# Face swaps


@dataclass(frozen=True)
class SwapRow:
    """A row of `face_swaps`: what became of a task as it was at this digest.

    The picture is None, and `reason` says why, where no face was swapped.
    """

    task: UUID
    digest: str
    outcome: str
    model: str
    reason: str | None = None
    faces: int | None = None
    at_edge: bool | None = None
    box: tuple[float, ...] | None = None
    identity_before: float | None = None
    identity_after: float | None = None
    image_path: str | None = None
    image_sha256: str | None = None
    elapsed_ms: int | None = None


def read_swaps(connection: Connection, tasks: Collection[LabelTaskRow], model: str) -> dict[UUID, SwapRow]:
    """What this model made of the tasks as they are now, by task."""
    digests = {task.id: task.digest for task in tasks}
    rows = connection.execute(
        select(*(face_swaps.c[field.name] for field in fields(SwapRow))).where(
            face_swaps.c.task.in_(list(digests)), face_swaps.c.model == model
        )
    )
    found = [SwapRow(**row._asdict() | {"box": tuple(json.loads(row.box)) if row.box else None}) for row in rows]
    return {swap.task: swap for swap in found if swap.digest == digests[swap.task]}


def swap_errors(connection: Connection, tasks: Collection[LabelTaskRow]) -> dict[UUID, str]:
    """Why no face was swapped in the tasks as they are now, by task, as far as none was."""
    digests = {task.id: task.digest for task in tasks}
    there = face_swaps.c
    rows = connection.execute(
        select(there.task, there.digest, there.reason).where(there.task.in_(list(digests)), there.reason.is_not(None))
    )
    return {task: reason for task, digest, reason in rows if digest == digests[task]}


def record_swap(connection: Connection, swap: SwapRow) -> None:
    """Keep what became of a task; what another model made of it before gives way."""
    row = asdict(swap) | {"box": json.dumps(swap.box) if swap.box else None, "created_at": utc_now()}
    statement = upsert(connection, face_swaps).values(row)
    values = {name: statement.excluded[name] for name in row if name not in ("task", "digest")}
    connection.execute(statement.on_conflict_do_update(index_elements=["task", "digest"], set_=values))


# Predictions


def selected_images(connection: Connection, batches: Collection[str] | None = None) -> list[SelectedImage]:
    """What was selected for each task of these batches, or of all; of several by one editor, the last."""
    rows = (
        select(
            edit_tasks.c.label_task,
            edit_candidates.c.id,
            edit_candidates.c.image_path,
            edit_candidates.c.image_sha256,
            edit_selections.c.selected_at,
            edit_runs.c.plan,
        )
        .join_from(edit_selections, edit_candidates, edit_candidates.c.id == edit_selections.c.candidate)
        .join(edit_tasks, edit_tasks.c.id == edit_selections.c.task)
        .join(edit_runs, edit_runs.c.id == edit_tasks.c.run_id)
        .join(label_tasks, label_tasks.c.id == edit_tasks.c.label_task)
        .where(edit_candidates.c.image_path.is_not(None))
        # What was made of a task before it changed is of no use to it now.
        .where(or_(edit_tasks.c.label_digest.is_(None), edit_tasks.c.label_digest == label_tasks.c.digest))
        .order_by(edit_selections.c.selected_at, edit_runs.c.created_at, edit_candidates.c.id)
    )
    of = {task.id: task for task in label_tasks_of(connection, batches)}
    last: dict[tuple[UUID, str], Any] = {}
    for row in connection.execute(rows):
        if row.label_task in of:
            last[row.label_task, json.loads(row.plan)["editor"]] = row
    measured = inpaint_scores(connection, [row.id for row in last.values()])
    found = [
        SelectedImage(
            of[task],
            row.id,
            row.image_path,
            row.image_sha256,
            json.loads(row.plan),
            row.selected_at,
            measured.get(row.id, {}),
        )
        for (task, _), row in last.items()
    ]
    return sorted(found, key=lambda each: (each.task.batch, each.task.position, each.plan["editor"]))


def inpaint_scores(connection: Connection, candidates: Sequence[UUID]) -> dict[UUID, dict[str, float]]:
    """What was measured of each candidate, by metric."""
    found: dict[UUID, dict[str, float]] = {}
    outcomes = select(image_scores.c.image_id, image_scores.c.metric, image_scores.c.value)
    for first in range(0, len(candidates), _IDS_PER_QUERY):
        some = image_scores.c.image_id.in_(candidates[first : first + _IDS_PER_QUERY])
        for candidate, metric, value in connection.execute(outcomes.where(some, image_scores.c.value.is_not(None))):
            found.setdefault(candidate, {})[metric] = value
    return found


@dataclass(frozen=True)
class JudgementFailure:
    """A score of a task's candidate that could not be had."""

    task: UUID
    candidate: UUID
    reason: str


def judgement_failures(connection: Connection, run: UUID, metrics: Collection[str]) -> list[JudgementFailure]:
    """What could not be had of these metrics in this run, of tasks as they are now, the last at the end."""
    there = image_scores.c
    rows = (
        select(edit_tasks.c.label_task, there.image_id, there.error)
        .join_from(edit_tasks, edit_candidates, edit_candidates.c.task == edit_tasks.c.id)
        .join(label_tasks, label_tasks.c.id == edit_tasks.c.label_task)
        .join(image_scores, there.image_id == edit_candidates.c.id)
        .where(edit_tasks.c.run_id == run, edit_tasks.c.label_digest == label_tasks.c.digest)
        .where(there.metric.in_(metrics), there.value.is_(None))
        .order_by(there.scored_at)
    )
    return [JudgementFailure(*row) for row in connection.execute(rows)]


def record_prediction(connection: Connection, sent: SentPrediction) -> None:
    """Keep what became of a prediction. One that the server held already keeps the time when it was first sent."""
    row = asdict(sent) | {"result": json.dumps(list(sent.result)), "sent_at": None if sent.error else utc_now()}
    statement = upsert(connection, label_predictions).values(row)
    new, old = statement.excluded, label_predictions.c
    values: dict[str, Any] = {name: new[name] for name in row if name not in ("task", "model_version")}
    same = old.digest == new.digest
    values["sent_at"] = case((same, func.coalesce(old.sent_at, new.sent_at)), else_=new.sent_at)
    if sent.error:
        # The server holds what it held.
        values = {"error": new.error}
    connection.execute(statement.on_conflict_do_update(index_elements=["task", "model_version"], set_=values))


def sent_predictions(connection: Connection) -> list[SentPrediction]:
    """What was sent, or could not be."""
    rows = connection.execute(select(*(label_predictions.c[field.name] for field in fields(SentPrediction))))
    return [SentPrediction(**row._asdict() | {"result": json.loads(row.result or "[]")}) for row in rows]


def reviewed_tasks(connection: Connection) -> list[tuple[SentPrediction, LabelTaskRow, dict[str, float]]]:
    """What each task was sent last, the task, and the scores of that candidate."""
    of = {task.id: task for task in label_tasks_of(connection)}
    last: dict[UUID, SentPrediction] = {}
    for sent in sorted(sent_predictions(connection), key=lambda each: each.sent_at or datetime.min):
        if sent.sent_at:
            last[sent.task] = sent
    measured = inpaint_scores(connection, [sent.candidate for sent in last.values()])
    return [(sent, of[sent.task], measured.get(sent.candidate, {})) for sent in last.values()]
