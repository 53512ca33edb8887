"""Images one by one, as the gallery shows them: settings, scores, and the error of a missing score."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Select, case, func, select

from flexy_assets.storage.quality import SAME_IMAGE_COLUMNS
from flexy_assets.storage.runs import in_model_set, prompt_column
from flexy_assets.storage.scores import EMBEDDING_METRIC, metric_value
from flexy_assets.storage.tables import bench_run_results, image_scores
from resources.metrics.sweep import METRICS
from resources.settings import Settings

NEWEST_IMAGES = "newest"
SORTS = (NEWEST_IMAGES, *METRICS)  # what a page is sorted by: the newest, or the highest of a metric, first

PAGE_IMAGES = 24

ImageCard = dict[str, Any]
"""An image: `id`, `run`, `batch`, its settings, `elapsed_ms`, `created_at`, `image_path`, `image_sha256`, and `scores`,
by metric `value` and, where that is None, the `reason`. Numbers are finite or None."""

_images = bench_run_results.c
_NUMBERS = ("steps", "guidance", "seed", "width", "height", "elapsed_ms")
_TEXTS = ("engine", "prompt", "negative_prompt", "batch", "image_path", "image_sha256")


def card_page(
    connection: Connection,
    settings: Settings,
    *,
    engine: str = "",
    prompt: str = "",
    run_id: UUID | None = None,
    sort: str = NEWEST_IMAGES,
    number: int = 1,
    size: int = PAGE_IMAGES,
) -> tuple[list[ImageCard], int]:
    """Return the cards of page `number` (from 1) and the number of images in all.

    Of this engine and run, where given, and with `prompt` somewhere in the prompt, in upper or lower case.
    """
    filters: list[ColumnElement[bool]] = [_images.engine == engine] if engine else []
    filters += [prompt_column(settings).icontains(prompt, autoescape=True)] if prompt else []
    filters += [_images.run_id == run_id] if run_id else []
    count = connection.scalar(select(func.count()).select_from(bench_run_results).where(*filters)) or 0
    order = [_images.created_at.desc().nulls_last(), _images.id]
    if sort != NEWEST_IMAGES:
        # What no score can be, Postgres' NaN for one, would stand before the best.
        value, metric = metric_value(sort), METRICS[sort]
        order.insert(0, case((value.between(metric.low, metric.high), value)).desc().nulls_last())
    # The ids alone are sorted: with the rest of each row a large table takes twice as long.
    ids = select(_images.id).where(*filters).order_by(*order).offset((number - 1) * size).limit(size)
    return cards_of_images(connection, settings, connection.scalars(ids)), count


def cards_of_images(connection: Connection, settings: Settings, image_ids: Iterable[UUID]) -> list[ImageCard]:
    """Return the cards of those of these images that exist, in this order."""
    ids = list(image_ids)
    rows = connection.execute(_select(settings).where(_images.id.in_(ids))).all()
    return _cards(connection, settings, sorted(rows, key=lambda row: ids.index(row.id)))


def image_file(connection: Connection, image_id: UUID) -> tuple[str, str | None] | None:
    """Return path and SHA-256 of an image; None for an unknown id."""
    row = connection.execute(select(_images.image_path, _images.image_sha256).where(_images.id == image_id)).first()
    return None if row is None else (row.image_path or "", row.image_sha256)


def engine_names(connection: Connection) -> list[str]:
    """Return the engines of the images in the table."""
    return sorted(connection.scalars(select(_images.engine).where(_images.engine.is_not(None)).distinct()))


def find_same_settings(connection: Connection, settings: Settings, made_with: Mapping[str, Any]) -> UUID | None:
    """Return the oldest image with these settings (`SAME_IMAGE_COLUMNS`), of any sweep; None where there is none."""
    columns = {name: _images[name] for name in SAME_IMAGE_COLUMNS} | {"prompt": prompt_column(settings)}
    same = [columns[name] == made_with.get(name) for name in SAME_IMAGE_COLUMNS]
    return connection.scalars(select(_images.id).where(*same).order_by(_images.created_at, _images.id).limit(1)).first()


def _select(settings: Settings) -> Select[Any]:
    prompt = {"prompt": prompt_column(settings).label("prompt")}
    columns = {name: _images[name] for name in (*_TEXTS, *_NUMBERS)} | prompt
    values = [metric_value(metric).label(metric) for metric in METRICS]
    ours = in_model_set(settings.models).label("ours")
    return select(_images.id, _images.run_id, _images.created_at, *columns.values(), *values, ours)


def _cards(connection: Connection, settings: Settings, rows: Collection[Row[Any]]) -> list[ImageCard]:
    lacking = [row.id for row in rows if any(_finite(row._mapping[metric]) is None for metric in METRICS)]
    outcome = image_scores.c
    failures = select(outcome.image_id, outcome.metric, outcome.error)
    failures = failures.where(outcome.image_id.in_(lacking), outcome.error.is_not(None))
    errors = {(image, metric): error for image, metric, error in connection.execute(failures)} if lacking else {}

    def reason(row: Row[Any], metric: str) -> str:
        if row._mapping[metric] is not None:
            return f"the table holds {row._mapping[metric]}"
        if error := errors.get((row.id, metric)):
            return str(error)
        if METRICS[metric].reads and (error := errors.get((row.id, EMBEDDING_METRIC))):
            return f"no embedding: {error}"
        if not row.ours:
            return f"FLEXY_MODELS={settings.models} does not score images of {row.engine or 'an unknown engine'}"
        return "not scored yet"

    def score(row: Row[Any], metric: str) -> dict[str, Any]:
        value = _finite(row._mapping[metric])
        return {"value": value, "reason": reason(row, metric) if value is None else None}

    return [
        {"id": str(row.id), "run": str(row.run_id) if row.run_id else None}
        | {name: row._mapping[name] for name in _TEXTS}
        | {name: _finite(row._mapping[name]) for name in _NUMBERS}
        | {"created_at": row.created_at.isoformat() if row.created_at else None}
        | {"scores": {metric: score(row, metric) for metric in METRICS}}
        for row in rows
    ]


def _finite(value: Any) -> int | float | None:
    """Return a number as JSON holds it: an adopted table may hold NaN, or Decimals."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None
