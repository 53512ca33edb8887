"""Missing scores, scores out of range, recorded files and duplicates, all counted by the database."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Double, Row, case, cast, func, not_, select

from flexy_assets.storage.runs import in_model_set, prompt_column
from flexy_assets.storage.scores import MAX_ATTEMPTS, metric_value
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results, image_scores, lacks_any_score, metadata
from resources.metrics import Metric
from resources.settings import Settings

_images = bench_run_results.c


@dataclass(frozen=True)
class RunTally:
    """One run's scores of a metric on one engine: how many are `outside` its bounds, and sums over the others."""

    engine: str | None
    run_id: UUID | None
    began: datetime | None
    outside: int
    count: int
    total: float
    squares: float
    lowest: float | None
    highest: float | None


def run_tallies(connection: Connection, metric: Metric) -> list[RunTally]:
    """Return the scores of `metric` by engine and run. NaN and infinity are outside any bounds."""
    value = metric_value(metric.name)
    # As double, because Postgres adds up REAL in REAL.
    valid_value = case((value.between(metric.low, metric.high), cast(value, Double)))
    sums = (func.coalesce(func.sum(term), 0.0) for term in (valid_value, valid_value * valid_value))
    counts = func.count(value) - func.count(valid_value), func.count(valid_value)
    columns = _images.engine, _images.run_id, func.min(_images.created_at), *counts, *sums
    statement = select(*columns, func.min(valid_value), func.max(valid_value)).where(value.is_not(None))
    return [RunTally(*row) for row in connection.execute(statement.group_by(_images.engine, _images.run_id))]


def images_out_of_range(connection: Connection, metric: Metric, limit: int) -> Sequence[Row[Any]]:
    """Return images whose score is out of range: id, run_id, engine, image_path and value, oldest first."""
    value = metric_value(metric.name)
    columns = _images.id, _images.run_id, _images.engine, _images.image_path, value.label("value")
    statement = select(*columns).where(value.is_not(None), not_(value.between(metric.low, metric.high)))
    return connection.execute(statement.order_by(_images.created_at, _images.id).limit(limit)).all()


@dataclass(frozen=True)
class MissingScores:
    """How many values are missing, how many of those `failed`, the last with `error`, and have no attempts left."""

    missing: int
    failed: int
    exhausted: int
    error: str | None


def missing_scores_of(connection: Connection, metric: str, models: str) -> MissingScores:
    """Return what is missing of `metric` among the images that the model set may score."""
    lacking = [metric_value(metric).is_(None), in_model_set(models)]
    if metric in METRIC_COLUMNS:
        lacking.append(lacks_any_score)  # so that it is answered from the index of such rows
    missing = connection.scalar(select(func.count()).select_from(bench_run_results).where(*lacking)) or 0
    outcome = image_scores.c
    failures = (
        select(func.count(), func.count(case((outcome.attempts >= MAX_ATTEMPTS, 1))))
        .join_from(image_scores, bench_run_results, outcome.image_id == _images.id)
        .where(outcome.metric == metric, outcome.value.is_(None), outcome.error.is_not(None), outcome.attempts > 0)
    ).where(*lacking)
    failed, exhausted = connection.execute(failures).one()
    last_error = failures.with_only_columns(outcome.error).order_by(outcome.scored_at.desc()).limit(1)
    return MissingScores(missing, failed, exhausted, connection.scalar(last_error) if failed else None)


def recorded_files(connection: Connection, limit: int) -> tuple[int, Sequence[Row[Any]]]:
    """Return the number of images, and id, run_id, image_path, image_sha256 of at most `limit`, drawn at random."""
    columns = _images.id, _images.run_id, _images.image_path, _images.image_sha256
    count = connection.scalar(select(func.count()).select_from(bench_run_results)) or 0
    return count, connection.execute(select(*columns).order_by(func.random()).limit(limit)).all()


def recorded_paths(connection: Connection) -> Iterator[str]:
    """Yield every path of an image file that a row of any table holds."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            if column.name == "path" and table.name == "edit_candidates":
                continue  # a number of steps
            if column.name == "path" or column.name.endswith("_path"):
                yield from connection.scalars(select(column).where(column.is_not(None)))


_SETTINGS = ("steps", "guidance", "scheduler", "seed", "width", "height")
SAME_IMAGE_COLUMNS = ("engine", "prompt", "negative_prompt", *_SETTINGS)
"""What makes an image: rows that agree in all of these are the same image."""


def duplicate_images(connection: Connection, settings: Settings, limit: int) -> Sequence[Row[Any]]:
    """Return images made twice, the most frequent first: `SAME_IMAGE_COLUMNS`, images, first_path, last_path.

    Each row has also the number of such groups and of their images: groups, of_groups. An image without a seed is no
    duplicate.
    """
    values = {name: _images[name] for name in SAME_IMAGE_COLUMNS} | {"prompt": prompt_column(settings).label("prompt")}
    # Seeds are mostly drawn at random: few occur twice, and only of those is the rest compared. Found once:
    # Postgres would find them again in each of its workers.
    seeds = select(_images.seed).where(_images.seed.is_not(None)).group_by(_images.seed).having(func.count() > 1)
    repeated = select(seeds.cte("seeds").prefix_with("MATERIALIZED"))
    candidates = select(*values.values(), _images.image_path).where(_images.seed.in_(repeated)).subquery("made").c
    same_columns, images = [candidates[name] for name in SAME_IMAGE_COLUMNS], func.count()
    paths = func.min(candidates.image_path).label("first_path"), func.max(candidates.image_path).label("last_path")
    totals = func.count().over().label("groups"), func.sum(images).over().label("of_groups")
    statement = select(*same_columns, images.label("images"), *paths, *totals).group_by(*same_columns)
    return connection.execute(statement.having(images > 1).order_by(images.desc(), *same_columns).limit(limit)).all()
