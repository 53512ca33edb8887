"""Adoption of existing rows: they get a batch, and their prompts are read from the column the user names."""

import re
import time
from collections.abc import Sequence
from textwrap import shorten

import sqlalchemy as sa
from sqlalchemy import Connection, func, select, update

from flexy_assets.names import partition_key, partition_prefix
from flexy_assets.storage.migrate import SET_LOCK_TIMEOUT, check_rights, migrate
from flexy_assets.storage.prompts import find_title
from flexy_assets.storage.table_forms import check_ids
from flexy_assets.storage.tables import bench_run_results
from resources.database import Database
from resources.errors import BadInputError
from resources.settings import Settings

BATCHES_PER_TRANSACTION = 20

RUNLESS_PREFIX = "norun"  # of the batches of rows without a run


def adopt_rows(database: Database, settings: Settings, seconds: float = 20) -> int:
    """Migrate the tables and assign a batch to rows without one; return how many rows got one.

    A run's rows are batched in the order of (created_at, id); a batch never changes. Stops after `seconds`, between
    transactions: the next call continues. Raises `BadInputError` where the tables cannot be adopted, or rights or the
    prompts' column are missing.
    """
    migrate(database)
    check_rights(database)
    with database.begin(reading=True) as connection:
        check_ids(connection, "batch IS NULL")
        _check_prompts(connection, settings)
    adopted, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        with database.begin() as connection:
            if connection.dialect.name == "postgresql":
                # Two processes would begin the same batch.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('flexy batches'))")
                connection.exec_driver_sql(SET_LOCK_TIMEOUT)
            assigned = _assign(connection, settings.batch_size)
        if not assigned:
            break
        adopted += assigned
    return adopted


def batch_names(connection: Connection) -> list[str]:
    """Return every batch, a sweep's in their order, by stepping through the index instead of reading every row."""
    batch = bench_run_results.c.batch
    steps = select(func.min(batch).label("batch")).cte("steps", recursive=True)
    after = select(func.min(batch)).where(batch > steps.c.batch).scalar_subquery()
    steps = steps.union_all(select(after).where(steps.c.batch.is_not(None)))
    return sorted(connection.scalars(select(steps.c.batch).where(steps.c.batch.is_not(None))), key=_batch_index)


def _batch_index(batch: str) -> tuple[str, int]:
    """Return a batch's sort key: as text the ten thousandth of a sweep would come before its second."""
    prefix, _, index = batch.rpartition("_")
    return (prefix, int(index)) if index.isdecimal() else (batch, 0)


def _assign(connection: Connection, size: int) -> int:
    """Assign rows to at most `BATCHES_PER_TRANSACTION` batches; return how many rows got one."""
    images = bench_run_results.c
    runs = select(images.run_id).where(images.batch.is_(None)).group_by(images.run_id)
    oldest_first = runs.order_by(func.min(images.created_at).nulls_last(), images.run_id)
    batches, assigned, begun = batch_names(connection), 0, 0
    for run_id in connection.scalars(oldest_first.limit(BATCHES_PER_TRANSACTION)).all():
        of_run = images.run_id == run_id if run_id else images.run_id.is_(None)
        prefix = partition_prefix(run_id) if run_id else RUNLESS_PREFIX
        index, room = _last_place(connection, prefix, batches, size)
        while begun < BATCHES_PER_TRANSACTION:
            unbatched = select(images.id).where(images.batch.is_(None), of_run)
            next_rows = unbatched.order_by(images.created_at, images.id).limit(room)
            batches.append(partition_key(prefix, index))
            statement = update(bench_run_results).where(images.id.in_(next_rows)).values(batch=batches[-1])
            count = connection.execute(statement).rowcount
            assigned, begun = assigned + count, begun + 1
            if count < room:
                break
            index, room = index + 1, size
    if begun and not assigned:
        raise BadInputError(
            f"{bench_run_results.name} takes no batch for its rows: a trigger or a rule refuses it: let this user"
            " update the rows"
        )
    return assigned


def _last_place(connection: Connection, prefix: str, batches: Sequence[str], size: int) -> tuple[int, int]:
    """Return the index of the batch that a run's next row belongs to, and how many more rows it takes."""
    pattern = re.compile(rf"{prefix}_(\d{{4,}})")
    index = max((int(match[1]) for match in map(pattern.fullmatch, batches) if match), default=0)
    batch = partition_key(prefix, index)
    held = connection.scalar(select(func.count()).where(bench_run_results.c.batch == batch)) or 0
    return (index, size - held) if held < size else (index + 1, size)


def _check_prompts(connection: Connection, settings: Settings) -> None:
    if settings.prompt_column is None:
        return
    table, name = settings.prompt_column
    columns = {column["name"]: column["type"] for column in sa.inspect(connection).get_columns(table)}
    readable = [column for column, kind in columns.items() if isinstance(kind, sa.String)]
    if name not in readable:
        cause = "holds no text" if name in columns else "does not exist"
        raise BadInputError(
            f"the column {table}.{name}, which FLEXY_PROMPT_COLUMN names, {cause}: name one of {', '.join(readable)}"
        )
    if title := find_title(connection, table, name):
        text, images = title
        raise BadInputError(
            f"the column {table}.{name} says {shorten(text, 60, placeholder=' …')!r} of {images} images with {images}"
            " seeds: it is a title, not a prompt: recover the prompts with flexy prompts recover FILE, or name another"
            " column in FLEXY_PROMPT_COLUMN"
        )
