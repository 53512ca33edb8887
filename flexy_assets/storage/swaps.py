"""What is asked of the table of swapped faces and written to it. Every function takes a connection in a transaction."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from uuid import UUID

from sqlalchemy import Connection, select

from flexy_assets.storage.labels import LabelTaskRow
from flexy_assets.storage.queries import upsert, utc_now
from flexy_assets.storage.tables import face_swaps

SWAPPED = "swapped"
SKIPPED = "left as it was"


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
