"""The state of the tables: progress, failures with their errors, the newest images."""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Integer, and_, case, exists, func, or_, select

from flexy_assets.storage.makers import list_beside
from flexy_assets.storage.quality import missing_scores_of, recorded_files
from flexy_assets.storage.runs import in_model_set, list_sweeps
from flexy_assets.storage.scores import EMBEDDING_METRIC, MAX_ATTEMPTS, score_value
from flexy_assets.storage.tables import bench_run_results, image_embeddings, image_scores, lacks_any_score, unsettled
from resources.errors import BadInputError
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.settings import Settings

STEPS_PER_BUCKET = 8
SAMPLED_FILES = 64
"""Files of each root that are looked for on disk."""

MAX_FILES = 2_000
"""Files read at most to find lost ones."""

_FAILED = and_(image_scores.c.error.is_not(None), image_scores.c.attempts > 0)


def read_status(connection: Connection, settings: Settings) -> dict[str, Any]:
    """Return the whole status: `totals`, by metric, by sweep and engine, by steps, and the newest rows.

    `runs` holds, per run and engine, `images`, `target` and per metric `scored`, `missing` and `failed`;
    `left_alone` counts, by engine, the images whose scores are missing but not for this set of models to fill, and
    `unknown_weights` those of which no row says which weights made them; `beside` the scores of Flexy that are kept
    beside a column.
    """
    runs, kinds = status_by_sweep(connection), ("scored", "missing", "failed")
    return {
        "totals": status_totals(connection),
        "metrics": [
            {"metric": name} | {kind: sum(run[name][kind] for run in runs) for kind in kinds} for name in METRICS
        ],
        "runs": runs,
        "steps": status_by_steps(connection),
        "newest": newest_images(connection),
        "left_alone": images_of_other_model_set(connection, settings),
        "beside": [{"metric": name, "scored": count_scores(connection, name)} for name in list_beside(connection)],
        "unknown_weights": images_of_unknown_weights(connection),
    }


def count_scores(connection: Connection, metric: str) -> int:
    """Return how many scores `image_scores` has of a metric."""
    return connection.scalar(select(func.count(image_scores.c.value)).where(image_scores.c.metric == metric)) or 0


def last_failure(connection: Connection, run_id: UUID) -> str | None:
    """Return the error of the sweep's last failed score."""
    statement = (
        select(image_scores.c.error)
        .join(bench_run_results, image_scores.c.image_id == bench_run_results.c.id)
        .where(bench_run_results.c.run_id == run_id, image_scores.c.value.is_(None))
        .order_by(image_scores.c.scored_at.desc())
    )
    return connection.scalars(statement.limit(1)).first()


def status_by_sweep(connection: Connection) -> list[dict[str, Any]]:
    """Return per sweep and engine, oldest first: images, target and, for each metric, scored, missing and failed.

    `steps` and `guidance` are the lowest and the highest, `first` and `last` the times of its images; null without any.
    Failed are those whose last attempt ended in an error; missing are the rest without a value.
    """
    images = bench_run_results.c
    group, metric = (images.run_id, images.engine), image_scores.c.metric
    values = [func.count(score_value(name)) for name in METRICS]
    ends = [end(images[name]) for name in ("steps", "guidance", "created_at") for end in (func.min, func.max)]
    by_run = select(*group, func.count(), *ends, *values).group_by(*group)
    grouped = connection.execute(by_run.order_by(func.min(images.created_at).nulls_last(), *group)).all()

    failures = connection.execute(
        select(*group, metric, func.count().cast(Integer))
        .join(image_scores, image_scores.c.image_id == images.id)
        .where(unsettled, _FAILED)
        # Somebody else may have filled the column since.
        .where(or_(*(and_(metric == name, score_value(name).is_(None)) for name in METRICS)))
        .group_by(*group, metric)
    )
    failed = {(run_id, engine, name): count for run_id, engine, name, count in failures}
    sweeps = {sweep.id: sweep for sweep in list_sweeps(connection)}
    begun = {run_id for run_id, *_ in grouped}
    nothing = (*(None for _ in ends), *(0 for _ in METRICS))
    empty = [(sweep.id, sweep.engine, 0, *nothing) for sweep in sweeps.values() if sweep.id not in begun]
    table = []
    for run_id, engine, count, *values_of_run in [*grouped, *empty]:
        (*ranges, first, last), scored = values_of_run[: len(ends)], values_of_run[len(ends) :]
        target = sweeps[run_id].target if run_id in sweeps else None
        entry = {"run": str(run_id) if run_id else None, "engine": engine, "images": count, "target": target}
        entry |= {"steps": ranges[:2], "guidance": ranges[2:]}
        entry |= {"first": first and first.isoformat(), "last": last and last.isoformat()}
        for name, value in zip(METRICS, scored, strict=True):
            failures_of_metric = failed.get((run_id, engine, name), 0)
            missing = count - value - failures_of_metric
            entry[name] = {"scored": value, "missing": missing, "failed": failures_of_metric}
        table.append(entry)
    return table


def status_totals(connection: Connection) -> dict[str, int]:
    """Return the numbers of images, of sweeps, and of images with every score."""
    images = bench_run_results.c
    complete = and_(*(score_value(name).is_not(None) for name in METRICS))
    counts = func.count().label("images"), func.count(images.run_id.distinct()).label("runs")
    row = connection.execute(select(*counts, func.count().filter(complete).label("complete"))).one()
    return dict(row._mapping)


def status_by_steps(connection: Connection) -> list[dict[str, Any]]:
    """Return by bucket of step counts (1–8, 9–16, …): images, mean seconds, and each metric's mean."""
    images = bench_run_results.c
    lowest = ((images.steps - 1) // STEPS_PER_BUCKET * STEPS_PER_BUCKET + 1).label("lowest")
    means = [func.avg(score_value(name)).label(name) for name in METRICS]
    seconds = (func.avg(images.elapsed_ms) / 1000).label("seconds")
    rows = connection.execute(
        select(lowest, func.count().label("images"), seconds, *means)
        .where(images.steps.is_not(None))
        .group_by(lowest)
        .order_by(lowest)
    )
    return [
        {"steps": f"{row.lowest}–{row.lowest + STEPS_PER_BUCKET - 1}", "images": row.images}
        | {name: None if row._mapping[name] is None else float(row._mapping[name]) for name in ("seconds", *METRICS)}
        for row in rows
    ]


def newest_images(connection: Connection, count: int = 10) -> list[dict[str, Any]]:
    """Return the newest rows, newest first."""
    images = bench_run_results.c
    names = ("created_at", "engine", "steps", "guidance", "seed", "elapsed_ms", "image_path")
    values = [score_value(name).label(name) for name in METRICS]
    statement = select(images.id, *(images[name] for name in names), *values)
    rows = connection.execute(statement.order_by(images.created_at.desc().nulls_last(), images.id).limit(count))
    return [
        dict(row) | {"id": str(row.id), "created_at": row.created_at.isoformat() if row.created_at else None}
        for row in rows.mappings()
    ]


def failed_scores(connection: Connection, limit: int | None = None) -> list[dict[str, Any]]:
    """Return failed scores and embeddings, the latest first; `given_up` ones wait for `flexy rescore --failed`."""
    images, outcome = bench_run_results.c, image_scores.c
    # By the encoder that failed: it may have succeeded since.
    vector = exists().where(image_embeddings.c.image_id == images.id, image_embeddings.c.encoder == outcome.scorer)
    lacking = or_(
        and_(outcome.metric == EMBEDDING_METRIC, ~vector),
        *(and_(outcome.metric == name, score_value(name).is_(None)) for name in METRICS),
        outcome.rescore.is_not(None),
    )
    columns = images.id, images.run_id, images.engine, images.image_path, outcome.metric, outcome.attempts
    statement = (
        select(*columns, outcome.error, outcome.scored_at)
        .join(image_scores, outcome.image_id == images.id)
        .where(_FAILED, or_(outcome.value.is_(None), outcome.rescore.is_not(None)), lacking)
        .order_by(outcome.scored_at.desc(), images.id, outcome.metric)
        .limit(limit)
    )
    return [
        {"image": str(row.id), "run": str(row.run_id) if row.run_id else None}
        | {name: row._mapping[name] for name in ("engine", "image_path", "metric", "attempts")}
        | {"given_up": row.attempts >= MAX_ATTEMPTS, "error": row.error, "tried_at": row.scored_at.isoformat()}
        for row in connection.execute(statement)
    ]


def images_of_other_model_set(connection: Connection, settings: Settings) -> dict[str, int]:
    """Return by engine the images with a missing score that this model set may not score."""
    images = bench_run_results.c
    others = ~func.coalesce(in_model_set(settings.models), False)
    counts = select(images.engine, func.count()).where(lacks_any_score, others).group_by(images.engine)
    return {engine or "unknown": count for engine, count in connection.execute(counts)}


def images_of_unknown_weights(connection: Connection) -> dict[str, int]:
    """Return by engine the images whose weights nobody has recorded."""
    images = bench_run_results.c
    unknown = images.engine.is_not(None), images.weights.is_(None)
    counts = select(images.engine, func.count()).where(*unknown).group_by(images.engine).order_by(images.engine)
    return dict(connection.execute(counts).tuples().all())


def nothing_missing_reason(connection: Connection, settings: Settings) -> str:
    """Return why there is nothing to backfill, where no score is missing that has attempts left."""
    if not connection.scalar(select(exists().select_from(bench_run_results))):
        remedy = "name the database of the images in FLEXY_DATABASE_URL, or run flexy sweep new"
        return f"there are no images: {bench_run_results.name} has no rows: {remedy}"
    unadopted = select(func.count()).select_from(bench_run_results).where(bench_run_results.c.batch.is_(None))
    if count := connection.scalar(unadopted):
        return f"{count:,} images are still to be adopted: run flexy backfill again"
    exhausted = sum(missing_scores_of(connection, metric, settings.models).exhausted for metric in METRICS)
    reason = (
        f"no scores are missing but {exhausted:,} that failed {MAX_ATTEMPTS} times"
        if exhausted
        else "no scores are missing"
    )
    if other_images := images_of_other_model_set(connection, settings):
        details = ", ".join(f"{count:,} images of {engine}" for engine, count in sorted(other_images.items()))
        reason += f" for FLEXY_MODELS={settings.models}; left to the other model set: {details}"
    return f"{reason}: flexy status --failed lists them" if exhausted else reason


def count_image_roots(connection: Connection, store: ImageStore) -> list[dict[str, Any]]:
    """Return by root: prefix, folder, rows, sampled, found, and the path of an example that was not found.

    Rows are counted by their path alone; of at most `SAMPLED_FILES` of a root, by id, the files are looked for. The
    last has no folder: no root reaches its rows.
    """
    path = bench_run_results.c.image_path
    roots: list[tuple[str | None, ImageStore | None]] = [*store.other_roots, (None, store), (None, None)]
    own, none = len(roots) - 2, len(roots) - 1
    prefixes = [(prefix, number) for number, (prefix, _) in enumerate(store.other_roots)]
    prefixes += [(prefix, own) for prefix in store.own_prefixes()]
    begins = [(func.substr(path, 1, len(prefix) + 1) == f"{prefix}/", number) for prefix, number in prefixes]
    outside = or_(path.is_(None), path == "", func.substr(path, 1, 1) == "/")
    root = case(*begins, (outside, none), else_=own).label("root")
    rows = dict(connection.execute(select(root, func.count()).group_by(root)).tuples().all())
    table = []
    for number, (prefix, images) in enumerate(roots):
        sample = select(path).where(root == number).order_by(bench_run_results.c.id).limit(SAMPLED_FILES)
        paths = [each or "" for each in connection.scalars(sample)] if rows.get(number) else []
        usable = images is not None and _is_usable(images)
        errors = store.verify_many([(each, None) for each in paths]) if usable else [True] * len(paths)
        lost = [each for each, error in zip(paths, errors, strict=True) if error]
        entry = {"prefix": prefix, "folder": str(images) if images else None, "rows": rows.get(number, 0)}
        table.append(
            entry | {"sampled": len(paths), "found": len(paths) - len(lost), "example": lost[0] if lost else None}
        )
    return table


def find_lost_images(connection: Connection, store: ImageStore, limit: int = MAX_FILES) -> dict[str, Any]:
    """Return the lost among at most `limit` images, drawn at random: of, checked, and for each image what to do.

    An image is lost whose file is missing or not as recorded; nothing is looked for without an image root. Each has
    image, run, image_path, reason, and whether its sweep has a `plan` to make it from again.
    """
    count, rows = recorded_files(connection, limit) if _is_usable(store) else (0, [])
    errors = store.find_lost([(row.image_path or "", row.image_sha256) for row in rows])
    planned = {sweep.id for sweep in list_sweeps(connection) if sweep.plan}
    images = [
        {"image": str(row.id), "run": str(row.run_id) if row.run_id else None, "image_path": row.image_path}
        | {"reason": str(error), "plan": row.run_id in planned}
        for row, error in zip(rows, errors, strict=True)
        if error
    ]
    return {"of": count, "checked": len(rows), "images": sorted(images, key=lambda image: image["image_path"])}


def _is_usable(images: ImageStore) -> bool:
    try:
        return images.exists()
    except BadInputError:
        return False
