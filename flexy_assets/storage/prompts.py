"""Titles that stand where prompts should, images without a prompt, and the prompts that are found for them."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection, and_, case, func, select, update

from flexy_assets.storage.runs import in_model_set, prompt_column
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results, bench_runs
from resources.chunks import split_chunks
from resources.errors import FlexyError
from resources.metrics.sweep import METRICS
from resources.prompts import Prompt
from resources.settings import Settings

MAX_IMAGES_OF_PROMPT = 16
"""A text of more images of one run, no two with the same seed, is the run's title and not their prompt."""

LARGEST_RUNS = 20

PROMPT_METRICS = tuple(name for name in METRIC_COLUMNS if METRICS[name].uses_prompt)
"""The columns of scores that depend on the prompt."""

_images = bench_run_results.c


@dataclass(frozen=True)
class RunImage:
    """An image of a run, some of whose images have no prompt; `scores` are those of `PROMPT_METRICS`."""

    image_id: UUID
    run_id: UUID
    batch: str
    prompt: str | None
    scores: Mapping[str, float | None]
    created_at: datetime | None


def read_run_images(connection: Connection, settings: Settings, run_ids: Collection[UUID]) -> list[RunImage]:
    """Return all images of these runs, or of all that may have a title, where some image has no prompt.

    By run, and in a run in the order in which they were made: of equal `created_at` it is unknown.
    """
    prompt = prompt_column(settings)
    runs = select(_images.run_id).where(_images.run_id.is_not(None), in_model_set(settings.models))
    runs = runs.group_by(_images.run_id).having(func.count(prompt) < func.count())
    runs = runs.where(_images.run_id.in_(run_ids)) if run_ids else runs.having(func.count() > MAX_IMAGES_OF_PROMPT)
    scores = [_images[name] for name in PROMPT_METRICS]
    rows = select(_images.id, _images.run_id, _images.batch, prompt, _images.created_at, *scores)
    rows = rows.where(_images.run_id.in_(runs), in_model_set(settings.models))
    rows = rows.order_by(_images.run_id, _images.created_at, _images.id)
    return [
        RunImage(image_id, run_id, batch, text, dict(zip(PROMPT_METRICS, values, strict=True)), created_at)
        for image_id, run_id, batch, text, created_at, *values in connection.execute(rows)
    ]


def record_prompts(connection: Connection, found: Mapping[UUID, tuple[Prompt | None, float]]) -> None:
    """Write to images without a prompt the one found, if any, with its groups and the confidence.

    Raises `FlexyError` where the table does not take them.
    """
    by_prompt: dict[Prompt | None, dict[UUID, float]] = defaultdict(dict)
    for image_id, (prompt, confidence) in found.items():
        by_prompt[prompt][image_id] = confidence
    for prompt, confidences in by_prompt.items():
        values = {}
        if prompt:
            values = {"prompt": prompt.text, "category": prompt.category, "complexity": prompt.complexity}
        for ids in split_chunks(list(confidences), 500):
            sure = case({image_id: confidences[image_id] for image_id in ids}, value=_images.id)
            statement = update(bench_run_results).where(_images.id.in_(ids), _images.prompt.is_(None))
            taken = connection.execute(statement.values(prompt_confidence=sure, **values)).rowcount
            if taken != len(ids):
                raise FlexyError(
                    f"{bench_run_results.name} took {taken} of {len(ids)} prompts: another process has written the"
                    " others, or row-level security or a trigger refuses them: let this user update the rows, run again"
                )


def find_title(connection: Connection, table: str, name: str) -> tuple[str, int] | None:
    """Return a text that would be read as the prompt of every image of a run, and how many the run has.

    Only the largest runs are searched: of a million rows, counting every run's seeds takes seconds.
    """
    own = table == bench_run_results.name
    columns = dict.fromkeys(("run_id", "seed", "prompt", "prompt_confidence", *([name] if own else [])))
    results = sa.table(bench_run_results.name, *map(sa.column, columns))
    images, count = results.c, func.count()
    unnamed = func.count(case((and_(images.prompt.is_(None), images.prompt_confidence.is_(None)), 1)))
    largest = select(images.run_id).where(images.run_id.is_not(None)).group_by(images.run_id)
    largest = largest.having(count > MAX_IMAGES_OF_PROMPT, unnamed > 0).order_by(count.desc()).limit(LARGEST_RUNS)
    runs = sa.table(bench_runs.name, sa.column("id"), sa.column(name))
    text = images[name] if own else runs.c[name]
    rows = results if own else results.join(runs, images.run_id == runs.c.id)
    titles = select(func.min(text), count).select_from(rows).group_by(images.run_id)
    titles = titles.where(images.run_id.in_(connection.scalars(largest).all()))
    one_text = func.count(text) == count, func.min(text) == func.max(text)
    titles = titles.having(*one_text, func.count(images.seed.distinct()) == count)
    return connection.execute(titles.limit(1)).tuples().first()
