"""What computed the existing scores of a metric. Every function takes a connection in a transaction."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection, func, select

from flexy_assets.storage.flexyface import RUNS, existing_columns
from flexy_assets.storage.runs import in_model_set, prompt_column
from flexy_assets.storage.scores import has_outcome, metric_value
from flexy_assets.storage.sql import upsert, utc_now
from flexy_assets.storage.tables import bench_run_results, image_scores, score_makers
from resources.metrics.sweep import METRICS
from resources.settings import Settings

_images = bench_run_results.c


@dataclass(frozen=True)
class ExistingScore:
    """An image with a score that our scorer did not make; `prompts` are its prompts by the column that holds them."""

    image_id: UUID
    image_path: str | None
    image_sha256: str | None
    value: float
    prompts: Mapping[str, str | None]


@dataclass(frozen=True)
class ScoreMaker:
    """What made the scores of a metric's column: the `variant` of the scorer, None where none computes them.

    `variant` maps `reads`, `scorer` and `prompts` of the `Metric` to their values. The figures are those of the best
    variant; `tried` describes each one, the best first.
    """

    metric: str
    scorer: str
    variant: dict[str, Any] | None
    sampled: int
    agreeing: int
    mean_difference: float | None
    spread: float | None
    correlation: float | None
    tried: tuple[str, ...]


def prompt_columns(connection: Connection, settings: Settings) -> list[str]:
    """Return the columns that may hold the prompts, as `TABLE.COLUMN`; first "", those that Flexy scores by."""
    named = ".".join(settings.prompt_column) if settings.prompt_column else ""
    title = existing_columns(connection, RUNS).get("prompt")
    titles = f"{RUNS.name}.prompt" if title and isinstance(title["type"], sa.String) else ""
    return ["", *dict.fromkeys(filter(None, (f"{bench_run_results.name}.prompt", named, titles)))]


def _select_existing(connection: Connection, metric: str, settings: Settings) -> sa.Select[Any]:
    prompts = [prompt_column(settings, column) for column in prompt_columns(connection, settings)]
    labelled = (prompt.label(f"prompt_{index}") for index, prompt in enumerate(prompts))
    return select(_images.id, _images.image_path, _images.image_sha256, metric_value(metric), *labelled)


def _read_existing(connection: Connection, statement: sa.Select[Any], settings: Settings) -> list[ExistingScore]:
    columns = prompt_columns(connection, settings)
    rows = connection.execute(statement)
    return [
        ExistingScore(image_id, path, sha256, float(value), dict(zip(columns, prompts, strict=True)))
        for image_id, path, sha256, value, *prompts in rows
        if value is not None
    ]


def sample_existing_scores(
    connection: Connection, metric: str, scorer: str, settings: Settings, size: int
) -> list[ExistingScore]:
    """Return at most `size` images with a score of `metric` that `scorer` did not make, evenly over the table."""
    value = metric_value(metric)
    ours = has_outcome(metric, image_scores.c.value.is_not(None), image_scores.c.scorer == scorer)
    place = func.row_number().over(order_by=(_images.created_at, _images.id))
    # NaN is above every number in Postgres.
    finite = value.between(-1e300, 1e300)
    others = select(_images.id, place.label("place"), func.count().over().label("count"))
    theirs = others.where(finite, ~ours, in_model_set(settings.models)).subquery().c
    # Integers: SQLAlchemy's own division is of real numbers.
    chosen = (theirs.place * size).op("/")(theirs.count) != ((theirs.place - 1) * size).op("/")(theirs.count)
    statement = _select_existing(connection, metric, settings).where(_images.id.in_(select(theirs.id).where(chosen)))
    return _read_existing(connection, statement.order_by(_images.created_at, _images.id), settings)


def record_maker(connection: Connection, maker: ScoreMaker, sample: Sequence[ExistingScore]) -> None:
    """Record what computed a metric's column, with the sample it was recognised by; without one it holds for good."""
    row = {
        **{name: getattr(maker, name) for name in ("sampled", "agreeing", "mean_difference", "spread", "correlation")},
        "variant": json.dumps(maker.variant) if maker.variant else None,
        "tried": json.dumps(maker.tried),
        "sample": json.dumps([each.image_id.hex for each in sample]),
        "digest": _digest(sample),
        "compared_at": utc_now(),
    }
    statement = upsert(connection, score_makers).values(metric=maker.metric, scorer=maker.scorer, **row)
    connection.execute(statement.on_conflict_do_update(index_elements=["metric", "scorer"], set_=row))


def read_maker(connection: Connection, metric: str, scorer: str, settings: Settings) -> ScoreMaker | None:
    """Return who made the metric's column as it is remembered for `scorer`.

    None where nothing is, or where the sampled images have other scores or prompts by now.
    """
    rows = score_makers.c
    row = connection.execute(select(score_makers).where(rows.metric == metric, rows.scorer == scorer)).one_or_none()
    if row is None:
        return None
    ids = [UUID(each) for each in json.loads(row.sample)]
    statement = _select_existing(connection, metric, settings).where(_images.id.in_(ids))
    sample = {each.image_id: each for each in _read_existing(connection, statement, settings)} if ids else {}
    if _digest([sample[each] for each in ids if each in sample]) != row.digest:
        return None
    return _score_maker(row)


def list_makers(connection: Connection, settings: Settings) -> list[ScoreMaker]:
    """Return the makers of the metrics as they were last compared or chosen, for this model set."""
    mini = score_makers.c.scorer.startswith("mini_", autoescape=True)
    statement = select(score_makers).where(mini if settings.models == "mini" else ~mini)
    statement = statement.where(score_makers.c.metric.in_(METRICS))
    rows = connection.execute(statement.order_by(score_makers.c.compared_at))
    return list({row.metric: _score_maker(row) for row in rows}.values())


def suspect_metrics(connection: Connection, settings: Settings) -> dict[str, str]:
    """Return by metric why its scores are not to be relied on, as they were last compared with those of our scorers.

    Such a metric has scores that no known scorer gives, or that were computed with prompts that are not the images'.
    """
    reasons = {}
    for maker in list_makers(connection, settings):
        if maker.variant is None:
            reasons[maker.metric] = f"no known scorer gives its scores ({maker.agreeing} of {maker.sampled} agree)"
        elif maker.variant["prompts"]:
            reasons[maker.metric] = f"its scores are of the prompts in {maker.variant['prompts']}, not the images' own"
    return reasons


def list_beside(connection: Connection) -> list[str]:
    """Return the names of the metrics whose scores by Flexy are kept beside their column."""
    names = score_makers.c.metric
    beside = [metric.beside.name for metric in METRICS.values()]
    return list(connection.scalars(select(names).where(names.in_(beside)).distinct().order_by(names)))


def _score_maker(row: sa.Row[Any]) -> ScoreMaker:
    figures = row.sampled, row.agreeing, row.mean_difference, row.spread, row.correlation
    variant = json.loads(row.variant) if row.variant else None
    return ScoreMaker(row.metric, row.scorer, variant, *figures, tuple(json.loads(row.tried)))


def _digest(sample: Sequence[ExistingScore]) -> str:
    contents = [[each.image_id.hex, each.value, dict(each.prompts)] for each in sample]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
