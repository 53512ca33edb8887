"""Jobs: backfill and rescore of any partitions, however scattered, a trial image, and the results."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import dagster as dg
from pydantic import Field

from flexy_assets import names
from flexy_assets.dead_runs import end_dead_runs
from flexy_assets.execution import batches_in_progress
from flexy_assets.partitions import SEED_BATCHES
from flexy_assets.reporting import text_tables, thumbnails
from flexy_assets.scoring import makers
from flexy_assets.scoring.work import Work
from flexy_assets.storage import gallery, status
from flexy_assets.storage.adoption import adopt_rows, batch_names
from flexy_assets.storage.flexyface import check_required_columns
from flexy_assets.storage.makers import record_maker
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import save_sweep
from flexy_assets.storage.scores import count_missing_scores, request_rescore
from flexy_assets.storage.table_forms import check_numbers
from flexy_assets.storage.tables import METRIC_COLUMNS
from flexy_assets.sweep import assets, backfill, checks, generation
from flexy_assets.sweep.try_image import Trial
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.images import ImageStore
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.models import registry
from resources.models.slot import ModelSlot
from resources.settings import Settings


class BackfillConfig(dg.Config):
    """What to backfill."""

    batches: list[str] | None = Field(
        default=None, description="The partitions, by default all with missing scores when the step starts."
    )


class RescoreConfig(dg.Config):
    """The scores to compute again."""

    metric: str = Field(description=f"One of {', '.join(METRICS)}.")
    runs: list[str] = Field(default=[], description="The ids of the sweeps, by default all.")
    failed: bool = Field(default=False, description="Only those that failed, which replaces nothing.")
    replaces: int = Field(
        default=0,
        description="Without `failed`: the number of scores that will be replaced, 0 or more; with another one nothing"
        " is done.",
    )


def _report(context: dg.OpExecutionContext, key: dg.AssetKey, batch: str, metadata: Mapping[str, Any]) -> None:
    context.log_event(dg.AssetMaterialization(key, partition=batch, metadata=metadata))


def _embed(context: dg.OpExecutionContext, work: Work, batches: list[str], metrics: list[str]) -> None:
    """Embed the images that the partitions' missing scores need, if these are computed from this encoder's vectors."""
    with work.slot:
        metrics = [name for name in metrics if assets.needs_clip_embeddings(work, METRICS[name], batches)]
    if not metrics:
        return
    assets.embed_partitions(work, batches, partial(_report, context, assets.clip_embeddings.key), metrics)


def _score(context: dg.OpExecutionContext, work: Work, metric: Metric, batches: list[str]) -> None:
    assets.score_partitions(work, metric, batches, partial(_report, context, assets.asset_key_of(metric)))


def _missing_batches(work: Work, metric: str) -> list[str]:
    with work.database.begin(reading=True) as connection:
        return list(count_missing_scores(connection, work.settings).get(metric, {}))


_EMBEDDING_METRICS = [metric.name for metric in METRICS.values() if metric.reads]


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def backfill_clip_embeddings(
    context: dg.OpExecutionContext, config: BackfillConfig, work: dg.ResourceParam[Work]
) -> None:
    """Embed the images with a missing score that is computed from embeddings."""
    batches = config.batches
    if batches is None:
        batches = sorted({batch for metric in _EMBEDDING_METRICS for batch in _missing_batches(work, metric)})
    _embed(context, work, batches, _EMBEDDING_METRICS)


def _backfill_op(metric: Metric) -> dg.OpDefinition:
    @dg.op(
        name=names.backfill_op(metric.name),
        description=f"Compute the missing scores of `{metric.name}` ({metric.label}).",
        ins={"embedded": dg.In(dg.Nothing)} if metric.reads else {},
        out=dg.Out(dg.Nothing),
        pool="gpu",
    )
    def backfill(context: dg.OpExecutionContext, config: BackfillConfig, work: dg.ResourceParam[Work]) -> None:
        batches = _missing_batches(work, metric.name) if config.batches is None else config.batches
        try:
            _score(context, work, metric, batches)
        except makers.UnknownMakerError as error:
            # The check of the metric fails in the results, which are made after a run that succeeds.
            context.log.error(str(error))

    return backfill


_BACKFILL_OPS = {name: _backfill_op(metric) for name, metric in METRICS.items()}


def _compose_backfill() -> None:
    embedded = backfill_clip_embeddings()
    for name, metric in METRICS.items():
        _BACKFILL_OPS[name](embedded) if metric.reads else _BACKFILL_OPS[name]()


@dg.job(name=names.BACKFILL_JOB, description="Compute every missing score of any partitions: one run for all metrics.")
def backfill_scores() -> None:
    _compose_backfill()


@dg.op(out=dg.Out(dg.Nothing))
def warn_deprecated_job(context: dg.OpExecutionContext) -> None:
    """Warn in the log of the Dagster run."""
    context.log.warning(f"the job {context.job_name} is deprecated: use {names.BACKFILL_JOB}")


@dg.job(name=names.DEPRECATED_BACKFILL_JOB, description=f"Deprecated: use {names.BACKFILL_JOB}.")
def heal_scores() -> None:
    warn_deprecated_job()
    _compose_backfill()


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def rescore(context: dg.OpExecutionContext, config: RescoreConfig, work: dg.ResourceParam[Work]) -> None:
    """Compute recorded scores, or failed ones, again; a score is kept until its new one is measured."""
    if config.metric not in METRICS:
        raise BadInputError(f"unknown metric {config.metric!r}: choose from {', '.join(METRICS)}")
    metric = METRICS[config.metric]
    try:
        runs = [UUID(run) for run in config.runs]
    except ValueError:
        raise BadInputError(f"invalid sweep ids {config.runs}: flexy status --json lists them in full") from None
    whole = not runs and not config.failed
    if not whole:
        makers.find_maker(work, metric)  # so that a column never has two makers
    with work.database.begin() as connection:
        request = request_rescore(connection, metric, runs, config.failed, work.settings)
        if request.replaced != config.replaces:
            raise BadInputError(
                f"{request.replaced} scores would be replaced, not {config.replaces}: set replaces to that number"
            )
        if whole:
            record_maker(connection, makers.own_maker(work, metric), [])
    batches = _missing_batches(work, metric.name)
    if metric.reads:
        _embed(context, work, batches, [metric.name])
    _score(context, work, metric, batches)


@dg.job(description="Compute scores again, replacing exactly the number given.")
def rescore_scores() -> None:
    rescore()


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def make_sweep(context: dg.OpExecutionContext, config: assets.SweepConfig, work: dg.ResourceParam[Work]) -> None:
    """Plan a sweep unless it is planned, make the images that it lacks, and compute their missing scores."""
    planned = assets.plan_sweep(work, context.instance, config)
    sweep = planned.sweep
    tags = {names.SWEEP_TAG: names.partition_prefix(sweep.run_id), names.ENGINE_TAG: sweep.engine}
    context.instance.add_run_tags(context.run_id, tags)
    assets.generate_partitions(work, planned.batches, partial(_report, context, assets.generated_images.key))
    errors = _score_all(context, work, planned.batches)
    if errors:
        raise FlexyError("; ".join(errors))


def _score_all(context: dg.OpExecutionContext, work: Work, batches: list[str]) -> list[str]:
    """Compute all missing scores of the partitions; return why some could not be, each reason once."""
    errors = []
    for step in (partial(_embed, metrics=_EMBEDDING_METRICS), *(partial(_score, metric=m) for m in METRICS.values())):
        try:
            step(context, work, batches=batches)
        except FlexyError as error:
            errors.append(str(error))
    return list(dict.fromkeys(errors))


def sweep_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run config of the job `sweep` for the fields of a `SweepConfig`."""
    return {"ops": {make_sweep.name: {"config": dict(settings)}}}


@dg.job(
    name=names.SWEEP_JOB,
    # The launchpad starts with the whole form.
    config=sweep_config(assets.SweepConfig().model_dump()),
    description="Plan a sweep, make its images and compute their scores; tables and report follow. What exists is not"
    " made again.",
)
def sweep() -> None:
    make_sweep()


class BesideConfig(dg.Config):
    """The metrics whose column stays as it is, while Flexy's own scores are kept beside it."""

    metrics: list[str] = Field(description=f"Some of {', '.join(METRIC_COLUMNS)}.")


def check_columns(metrics: Sequence[str]) -> None:
    """Raise `BadInputError` for a metric that has no column."""
    for name in metrics:
        if name not in METRIC_COLUMNS:
            raise BadInputError(f"unknown column {name!r}: choose from {', '.join(METRIC_COLUMNS)}")


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def score_beside(config: BesideConfig, work: dg.ResourceParam[Work]) -> None:
    """Compute Flexy's own scores of every image, and write them to `image_scores` alone."""
    check_columns(config.metrics)
    adopt_rows(work.database, work.settings)
    with work.database.begin(reading=True) as connection:
        batches = batch_names(connection)
    for name in config.metrics:
        assets.score_beside(work, METRICS[name], batches)


@dg.job(description="Compute Flexy's own scores beside columns that stay as they are.")
def backfill_beside() -> None:
    score_beside()


_PIXELS = "In pixels, a multiple of 8 from 8 to 8192; by default the engine's own"


class TrialConfig(dg.Config):
    """One image at settings of your choice; defaults are the engine's own."""

    prompt: str = Field(description="What the image should show.")
    engine: str = Field(default="", description="The model (see flexy models); by default the first of the model set.")
    negative_prompt: str | None = Field(default=None, description="What it should not show; by default nothing.")
    steps: int | None = Field(default=None, description="Denoising steps, 1 to 1000; by default the engine's own.")
    guidance: float | None = Field(
        default=None, description="How closely it follows the prompt, 0 to 100; by default the engine's own."
    )
    seed: int = Field(default=0, description="0 to 2147483647: the same seed and settings are the same image.")
    width: int | None = Field(default=None, description=f"{_PIXELS}.")
    height: int | None = Field(default=None, description=f"{_PIXELS}.")

    def trial(self, settings: Settings) -> Trial:
        """Return the validated settings. Raises `BadInputError` naming an invalid one."""
        return Trial.of(settings, **self.model_dump())


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def trial(context: dg.OpExecutionContext, config: TrialConfig, work: dg.ResourceParam[Work]) -> None:
    """Generate one image unless it is there, compute its missing scores, and show it with the last trials."""
    trial_settings, errors = config.trial(work.settings), []
    migrate(work.database)
    with work.database.begin(reading=True) as connection:
        existing_id = gallery.find_same_settings(connection, work.settings, trial_settings.to_json())
    # A sweep's image is left to its sweep, and so are its scores.
    is_own = existing_id in (None, trial_settings.image_id)
    if is_own and len(generation.images_to_generate(work.database, work.store, trial_settings.row())):
        _generate_trial(context, work, trial_settings)
    if is_own:
        errors = _score_all(context, work, [trial_settings.batch])
    with work.database.begin(reading=True) as connection:
        (card,) = gallery.cards_of_images(connection, work.settings, [existing_id or trial_settings.image_id])
        last_trials, _ = gallery.card_page(connection, work.settings, run_id=trial_settings.run_id, size=8)
    metadata = _trial_metadata(work.store, [card, *(other for other in last_trials if other["id"] != card["id"])])
    key = assets.generated_images.key
    context.log_event(dg.AssetObservation(key, partition=card["batch"], metadata=metadata))
    if errors:
        raise FlexyError("; ".join(errors))


def _generate_trial(context: dg.OpExecutionContext, work: Work, trial: Trial) -> None:
    with work.database.begin() as connection:
        check_required_columns(connection)
        save_sweep(connection, trial.run_id, trial.engine, None, None)
    with work.slot:
        model = registry.find_engine(trial.engine, work.settings)
        engine, row = work.slot.get(model), trial.row()
        made_on = generation.describe_provenance(model, work.slot)
        outcome = generation.generate_images(work.database, work.store, engine, row, lambda _: None, made_on)
    if outcome.failed:
        raise FlexyError(outcome.failed[0])
    # Only now: a partition without an image belongs to no sweep.
    context.instance.add_dynamic_partitions(SEED_BATCHES, [trial.batch])
    metadata = {"images generated": outcome.made, "sweep": str(trial.run_id), "image": str(trial.image_id)}
    _report(context, assets.generated_images.key, trial.batch, metadata)


def _trial_metadata(images: ImageStore, trials: Sequence[gallery.ImageCard]) -> dict[str, Any]:
    """Return a trial's metadata: the image, its scores or why they are missing, and the last trials."""
    trial = trials[0]
    metadata: dict[str, Any] = {"image": _contact_sheet(images, [trial], 256), "id": trial["id"]}
    for name, score in trial["scores"].items():
        metadata[METRICS[name].label] = score["reason"] if score["value"] is None else score["value"]
    if len(trials) > 1:
        rows = [
            {name: image[name] for name in ("prompt", "steps", "guidance", "seed")}
            | {METRICS[name].label: score["value"] for name, score in image["scores"].items()}
            for image in trials
        ]
        metadata["last trials"] = dg.MetadataValue.md(text_tables.format_markdown_table(rows))
        metadata["images of the last trials"] = _contact_sheet(images, trials, 128)
    return metadata


def _contact_sheet(images: ImageStore, shown: Sequence[gallery.ImageCard], side: int) -> dg.MetadataValue:
    read = images.read_many([(image["image_path"], image["image_sha256"]) for image in shown])
    readable = [image for image in read if not isinstance(image, Exception)]
    if not readable:
        return dg.MetadataValue.text(str(read[0]))
    sheet = thumbnails.make_contact_sheet(readable, side=side)
    return dg.MetadataValue.md(thumbnails.markdown_image(", ".join(image["id"] for image in shown), sheet))


def trial_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run config of `try_image` for a trial's settings."""
    return {"ops": {trial.name: {"config": dict(settings)}}}


@dg.job(
    # The launchpad starts with the whole form.
    config=trial_config(TrialConfig(prompt="").model_dump()),
    description="Generate and score one image at settings of your choice; null or empty settings are the engine's own.",
)
def try_image() -> None:
    trial()


results = dg.define_asset_job(
    "results",
    selection=dg.AssetSelection.assets("sweep_scores").downstream()
    | dg.AssetSelection.checks(checks.image_checks, checks.score_checks),
    description="The tables, the CSV and the report, then every check.",
)


def request_backfill(
    instance: dg.DagsterInstance, database: Database, images: ImageStore, settings: Settings
) -> dg.RunRequest | dg.SkipReason:
    """Return a request for one Dagster run that computes all missing scores not in progress, or why there is none.

    Raises `BadInputError` where the table cannot be adopted, the image root does not exist or a scorer's package is
    not installed.
    """
    end_dead_runs(instance)
    adopt_rows(database, settings)
    register_partitions(instance, database)
    with database.begin(reading=True) as connection:
        check_numbers(connection)
        missing = count_missing_scores(connection, settings)
        if not missing:
            return dg.SkipReason(status.nothing_missing_reason(connection, settings))
    work = Work(database, images, ModelSlot(), settings)
    registry.check_references(settings)
    refusals = makers.recall_refusals(work, [METRICS[name] for name in missing])
    fillable = {name: batches for name, batches in missing.items() if name not in refusals}
    selected = backfill.select_partitions(fillable, batches_in_progress(instance))
    if not fillable:
        return dg.SkipReason("; ".join(map(makers.describe_refusal, refusals.values())))
    if not selected:
        return dg.SkipReason("a backfill is already running for all missing scores")
    images.check()
    return dg.RunRequest(run_config=backfill_config(selected), tags=backfill.backfill_tags(selected, missing))


def register_partitions(instance: dg.DagsterInstance, database: Database) -> list[str]:
    """Add the table's partitions to the Dagster instance; return the new ones."""
    known = set(instance.get_dynamic_partitions(SEED_BATCHES))
    with database.begin(reading=True) as connection:
        new = [batch for batch in batch_names(connection) if batch not in known]
    if new:
        instance.add_dynamic_partitions(SEED_BATCHES, new)
    return new


def backfill_config(selected: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the run config of `backfill_scores` for these partitions of each metric."""
    embedded = sorted({batch for metric in _EMBEDDING_METRICS for batch in selected.get(metric, ())})
    missing = {name: selected.get(name, []) for name in METRICS} | {names.EMBEDDINGS_ASSET: embedded}
    return {"ops": {names.backfill_op(name): {"config": {"batches": keys}} for name, keys in missing.items()}}
