"""Queries on the tables of inpainting. Every function takes a connection in a transaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

import polars as pl
from sqlalchemy import ColumnElement, Connection, case, exists, func, or_, select, text, true, update

from flexy_assets.storage import tables
from flexy_assets.storage.sql import upsert, utc_now
from flexy_assets.storage.tables import edit_candidates, edit_runs, edit_selections, edit_tasks, label_tasks
from resources.chunks import split_chunks
from resources.label_studio.export import ReviewVerdict

PENDING_BATCH = "its images are not fetched yet: import it again"
"""The error of a task that its import has not processed yet."""

SWAPPED, SKIPPED = "swapped", "left as it was"  # outcomes of a face swap

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
        """The paths of its image files."""
        return [path for path in (self.image_path, self.mask_path, self.character_path, self.final_path) if path]

    @property
    def scene_mask_and_character(self) -> list[StoredImage]:
        """The files of scene, mask and character."""
        paths = self.image_path, self.mask_path, self.character_path
        digests = self.image_sha256, self.mask_sha256, self.character_sha256
        return [StoredImage(path, sha256) for path, sha256 in zip(paths, digests, strict=True) if path]


@dataclass(frozen=True)
class StoredImage:
    """A file in the image store."""

    image_path: str
    image_sha256: str | None


@dataclass(frozen=True)
class SelectedImage:
    """The candidate that was last selected for a task; `plan` is its inpainting plan as it was saved."""

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
    """Return a task's id, the same from an export and from the server."""
    return uuid5(_NAMESPACE, f"{'' if project is None else project}/{name}")


def label_tasks_of(connection: Connection, batches: Collection[str] | None = None) -> list[LabelTaskRow]:
    """Return the tasks of these partitions, or all, in order."""
    return _read_tasks(connection, true() if batches is None else _tasks.batch.in_(batches))


def label_tasks_by_id(connection: Connection, ids: Collection[UUID]) -> dict[UUID, LabelTaskRow]:
    """Return the tasks with these ids, as far as they exist."""
    return {task.id: task for task in _read_tasks(connection, _tasks.id.in_(ids))}


def _read_tasks(connection: Connection, condition: ColumnElement[bool]) -> list[LabelTaskRow]:
    query = select(*(_tasks[field.name] for field in fields(LabelTaskRow))).where(condition)
    rows = connection.execute(query.order_by(_tasks.created_at, _tasks.batch, _tasks.position))
    return [LabelTaskRow(**row._asdict() | {"verdicts": _verdicts(row.verdicts)}) for row in rows]


def _verdicts(text: str) -> tuple[ReviewVerdict, ...]:
    return tuple(ReviewVerdict(**entry | {"choices": tuple(entry["choices"])}) for entry in json.loads(text))


def _row(task: LabelTaskRow) -> dict[str, Any]:
    return asdict(task) | {"verdicts": json.dumps([asdict(verdict) for verdict in task.verdicts])}


def reserve_batches(connection: Connection, tasks: Sequence[LabelTaskRow], batch_size: int) -> int:
    """Add unknown tasks as pending, in new partitions of their project; return their number."""
    if connection.dialect.name == "postgresql":
        # Two concurrent imports would open the same partition.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('flexy label batches'))"))
    chunks = split_chunks([task.id for task in tasks], _IDS_PER_QUERY)
    known = {each for ids in chunks for each in connection.scalars(select(_tasks.id).where(_tasks.id.in_(ids)))}
    next_index = Counter[str]()
    for batch in connection.scalars(select(_tasks.batch).distinct()):
        project, _, index = batch.rpartition("_")
        next_index[project] = max(next_index[project], int(index) + 1)
    count: Counter[str] = Counter()
    rows = []
    for task in (task for task in tasks if task.id not in known):
        project = "export" if task.project is None else str(task.project)
        index, position = divmod(count[project], batch_size)
        count[project] += 1
        new = replace(task, batch=f"{project}_{next_index[project] + index:04d}", position=position)
        rows.append(_row(replace(new, error=PENDING_BATCH)) | {"created_at": utc_now(), "updated_at": utc_now()})
    if rows:
        connection.execute(upsert(connection, label_tasks).on_conflict_do_nothing(), rows)
    return len(rows)


def save_label_task(connection: Connection, task: LabelTaskRow) -> None:
    """Update a task; its partition and position stay."""
    values = {name: value for name, value in _row(task).items() if name not in ("id", "batch", "position")}
    connection.execute(update(label_tasks).where(_tasks.id == task.id).values(values | {"updated_at": utc_now()}))


def refresh_label_tasks(connection: Connection, tasks: Sequence[LabelTaskRow]) -> None:
    """Update the fields of known tasks that are not in their digest: verdicts, and the Label Studio id if given."""
    known = {task.id: (task.verdicts, task.label_studio_id) for task in label_tasks_of(connection)}
    for task in tasks:
        verdicts, number = known.get(task.id, ((), None))
        values = {"verdicts": _row(task)["verdicts"], "label_studio_id": task.label_studio_id or number}
        if task.id in known and (task.verdicts, values["label_studio_id"]) != (verdicts, number):
            connection.execute(update(label_tasks).where(_tasks.id == task.id).values(values))


LABEL_TASKS_SCHEMA: dict[str, Any] = {
    **{"batch": pl.String, "task_id": pl.String, "project": pl.Int64, "character": pl.String, "prompt": pl.String},
    **dict.fromkeys(("image_path", "mask_path", "character_path", "final_path", "verdict", "error"), pl.String),
}
"""The columns of the asset `label_tasks`: one row per task; `verdict` lists people's choices, separated by ` | `."""


def label_tasks_table(tasks: Sequence[LabelTaskRow]) -> pl.DataFrame:
    """Return the tasks as a frame (`LABEL_TASKS_SCHEMA`)."""
    rows = []
    for task in tasks:
        verdict = " | ".join(", ".join(verdict.choices) for verdict in task.verdicts) or None
        character = task.character_name or task.character_id
        row = asdict(task) | {"task_id": task.name, "character": character, "verdict": verdict}
        rows.append([row[name] for name in LABEL_TASKS_SCHEMA])
    return pl.DataFrame(rows, schema=LABEL_TASKS_SCHEMA, orient="row")


def stored_pictures(connection: Connection, addresses: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return path and SHA-256 of the images already fetched; addresses are given by their SHA-256."""
    columns = tables.label_pictures.c
    query = select(columns.address_sha256, columns.path, columns.sha256).where(columns.address_sha256.in_(addresses))
    return {address: (path, sha256) for address, path, sha256 in connection.execute(query)}


def record_picture(connection: Connection, address: str, path: str, sha256: str) -> None:
    """Store the image that was fetched from an address, given by its SHA-256."""
    values = {"path": path, "sha256": sha256, "fetched_at": utc_now()}
    statement = upsert(connection, tables.label_pictures).values(values | {"address_sha256": address})
    connection.execute(statement.on_conflict_do_update(index_elements=["address_sha256"], set_=values))


@dataclass(frozen=True)
class SwapRow:
    """A row of `face_swaps`: the swap of a task in the state of this digest, its image or the error (`reason`)."""

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
    """Return this model's swaps of the tasks in their current state, by task."""
    digests = {task.id: task.digest for task in tasks}
    columns = tables.face_swaps.c
    query = select(*(columns[field.name] for field in fields(SwapRow)))
    rows = connection.execute(query.where(columns.task.in_(list(digests)), columns.model == model))
    swaps = [SwapRow(**row._asdict() | {"box": tuple(json.loads(row.box)) if row.box else None}) for row in rows]
    return {swap.task: swap for swap in swaps if swap.digest == digests[swap.task]}


def swap_errors(connection: Connection, tasks: Collection[LabelTaskRow]) -> dict[UUID, str]:
    """Return the errors of the tasks in their current state without a swapped face, by task."""
    digests = {task.id: task.digest for task in tasks}
    columns = tables.face_swaps.c
    query = select(columns.task, columns.digest, columns.reason)
    rows = connection.execute(query.where(columns.task.in_(list(digests)), columns.reason.is_not(None)))
    return {task: reason for task, digest, reason in rows if digest == digests[task]}


def record_swap(connection: Connection, swap: SwapRow) -> None:
    """Store a swap; it replaces one by another model."""
    row = asdict(swap) | {"box": json.dumps(swap.box) if swap.box else None, "created_at": utc_now()}
    statement = upsert(connection, tables.face_swaps).values(row)
    values = {name: statement.excluded[name] for name in row if name not in ("task", "digest")}
    connection.execute(statement.on_conflict_do_update(index_elements=["task", "digest"], set_=values))


def selected_images(connection: Connection, batches: Collection[str] | None = None) -> list[SelectedImage]:
    """Return the winners of the tasks of these partitions, or of all; per task and editor, the last one."""
    candidate = edit_candidates.c
    rows = (
        select(edit_tasks.c.label_task, candidate.id, candidate.image_path, candidate.image_sha256)
        .add_columns(edit_selections.c.selected_at, edit_runs.c.plan)
        .join_from(edit_selections, edit_candidates, edit_candidates.c.id == edit_selections.c.candidate)
        .join(edit_tasks, edit_tasks.c.id == edit_selections.c.task)
        .join(edit_runs, edit_runs.c.id == edit_tasks.c.run_id)
        .join(label_tasks, label_tasks.c.id == edit_tasks.c.label_task)
        .where(candidate.image_path.is_not(None))
        # Results of a task before it changed are obsolete.
        .where(or_(edit_tasks.c.label_digest.is_(None), edit_tasks.c.label_digest == label_tasks.c.digest))
        .order_by(edit_selections.c.selected_at, edit_runs.c.created_at, edit_candidates.c.id)
    )
    tasks = {task.id: task for task in label_tasks_of(connection, batches)}
    last: dict[tuple[UUID, str], tuple[Any, dict[str, Any]]] = {}
    for row in connection.execute(rows):
        plan = json.loads(row.plan)
        if row.label_task in tasks:
            last[row.label_task, plan["editor"]] = row, plan
    scores = inpaint_scores(connection, [row.id for row, _ in last.values()])
    selected = [
        SelectedImage(tasks[task], key, path, sha256, plan, selected_at, scores.get(key, {}))
        for (task, key, path, sha256, selected_at, _), plan in last.values()
    ]
    return sorted(selected, key=lambda image: (image.task.batch, image.task.position, image.plan["editor"]))


def inpaint_scores(connection: Connection, candidates: Sequence[UUID]) -> dict[UUID, dict[str, float]]:
    """Return the scores of each candidate, by metric."""
    scores: dict[UUID, dict[str, float]] = {}
    columns = tables.image_scores.c
    query = select(columns.image_id, columns.metric, columns.value).where(columns.value.is_not(None))
    for ids in split_chunks(candidates, _IDS_PER_QUERY):
        for candidate, metric, value in connection.execute(query.where(columns.image_id.in_(ids))):
            scores.setdefault(candidate, {})[metric] = value
    return scores


def judgement_failures(connection: Connection, run: UUID, metrics: Collection[str]) -> list[tuple[UUID, UUID, str]]:
    """Return task, candidate and error of this run's failed scores of these metrics, of unchanged tasks, in order.

    Failed is also a score that another judge has given, and the last one asked has not.
    """
    scores = tables.image_scores.c
    rows = (
        select(edit_tasks.c.label_task, scores.image_id, scores.error)
        .join_from(edit_tasks, edit_candidates, edit_candidates.c.task == edit_tasks.c.id)
        .join(label_tasks, label_tasks.c.id == edit_tasks.c.label_task)
        .join(tables.image_scores, scores.image_id == edit_candidates.c.id)
        .where(edit_tasks.c.run_id == run, edit_tasks.c.label_digest == label_tasks.c.digest)
        .where(scores.metric.in_(metrics), scores.error.is_not(None))
        .order_by(scores.scored_at)
    )
    return [(task, candidate, error) for task, candidate, error in connection.execute(rows)]


def is_judged(connection: Connection, run: UUID, judge: str) -> bool:
    """Return whether this judge, by its fingerprint, has scored a candidate of this run."""
    scores = tables.image_scores.c
    judged = select(scores.value).join_from(edit_tasks, edit_candidates, edit_candidates.c.task == edit_tasks.c.id)
    judged = judged.join(tables.image_scores, scores.image_id == edit_candidates.c.id)
    of_judge = edit_tasks.c.run_id == run, scores.scorer == judge, scores.value.is_not(None)
    return bool(connection.scalar(select(exists(judged.where(*of_judge)))))


def record_prediction(connection: Connection, sent: SentPrediction) -> None:
    """Store the outcome of a prediction; one that the server already had keeps the time when it was first sent."""
    row = asdict(sent) | {"result": json.dumps(list(sent.result)), "sent_at": None if sent.error else utc_now()}
    statement = upsert(connection, tables.label_predictions).values(row)
    new, old = statement.excluded, tables.label_predictions.c
    values: dict[str, Any] = {name: new[name] for name in row if name not in ("task", "model_version")}
    unchanged = old.digest == new.digest
    values["sent_at"] = case((unchanged, func.coalesce(old.sent_at, new.sent_at)), else_=new.sent_at)
    if sent.error:
        # The server still has the previous prediction.
        values = {"error": new.error}
    connection.execute(statement.on_conflict_do_update(index_elements=["task", "model_version"], set_=values))


def sent_predictions(connection: Connection) -> list[SentPrediction]:
    """Return all predictions that were sent or failed."""
    rows = connection.execute(select(*(tables.label_predictions.c[field.name] for field in fields(SentPrediction))))
    return [SentPrediction(**row._asdict() | {"result": json.loads(row.result or "[]")}) for row in rows]


def reviewed_tasks(connection: Connection) -> list[tuple[SentPrediction, LabelTaskRow, dict[str, float]]]:
    """Return each task's last sent prediction, the task, and the scores of that candidate."""
    tasks = {task.id: task for task in label_tasks_of(connection)}
    last: dict[UUID, SentPrediction] = {}
    for sent in sorted(sent_predictions(connection), key=lambda prediction: prediction.sent_at or datetime.min):
        if sent.sent_at:
            last[sent.task] = sent
    scores = inpaint_scores(connection, [sent.candidate for sent in last.values()])
    return [(sent, tasks[sent.task], scores.get(sent.candidate, {})) for sent in last.values()]
