"""Jobs beside the lineage: those that fill holes, of any batches, however scattered, and one that tries an image."""

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
from flexy_assets.reporting.progress import progress_bar
from flexy_assets.scoring import missing_scores
from flexy_assets.scoring.work import Work
from flexy_assets.storage import gallery, status
from flexy_assets.storage.adoption import adopt_rows, batch_names
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import save_sweep
from flexy_assets.storage.scores import count_missing_scores, request_rescore
from flexy_assets.sweep import assets, backfill, checks, generation
from flexy_assets.sweep.try_image import Trial
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.images import ImageStore
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.models import registry
from resources.settings import Settings


class BackfillConfig(dg.Config):
    """The batches to fill; without any, whatever is missing when the step begins."""

    batches: list[str] | None = None


class RescoreConfig(dg.Config):
    """Which scores to compute again, of all runs or of some (their ids).

    With `failed` only those that failed, which replaces nothing. Else `replaces` says how many scores will be
    replaced, and nothing is done where it is another number.
    """

    metric: str
    runs: list[str] = []
    failed: bool = False
    replaces: int = 0


def _embed(context: dg.OpExecutionContext, work: Work, batches: list[str], metrics: list[str]) -> None:
    """Embed what the batches' missing scores rest on."""
    count = work.count_pending(work.pending_embeddings(needed_for=metrics), batches)
    with work.slot, progress_bar("images embedded", count) as bar:
        for batch, outcome in missing_scores.embed_images(work, batches, bar.update, needed_for=metrics):
            _report(context, assets.clip_embeddings.key, batch, assets.embeddings_metadata(work, outcome))


def _score(context: dg.OpExecutionContext, work: Work, metric: Metric, batches: list[str]) -> None:
    with work.slot, progress_bar(metric.name, work.count_pending(work.pending_scores(metric), batches)) as bar:
        for batch, outcome in missing_scores.score_images(work, metric, batches, bar.update):
            work.record_partition(names.score_asset(metric.name), batch, outcome)
            metadata = assets.scores_metadata(work.database, metric, batch, outcome)
            _report(context, assets.asset_key_of(metric), batch, metadata)


def _report(context: dg.OpExecutionContext, key: dg.AssetKey, batch: str, metadata: Mapping[str, Any]) -> None:
    context.log_event(dg.AssetMaterialization(key, partition=batch, metadata=metadata))


def _missing_batches(work: Work, metric: str) -> list[str]:
    with work.database.begin(reading=True) as connection:
        return list(count_missing_scores(connection, work.settings).get(metric, {}))


_EMBEDDING_METRICS = [metric.name for metric in METRICS.values() if metric.reads]


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def backfill_clip_embeddings(
    context: dg.OpExecutionContext, config: BackfillConfig, work: dg.ResourceParam[Work]
) -> None:
    """Embed the images that lack a score which is computed from embeddings."""
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
        _score(context, work, metric, _missing_batches(work, metric.name) if config.batches is None else config.batches)

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
    """Compute scores again that are there, or that were given up; a score stays until its new one is measured."""
    if config.metric not in METRICS:
        raise BadInputError(f"{config.metric} is no metric: use one of {', '.join(METRICS)}")
    metric = METRICS[config.metric]
    try:
        runs = [UUID(run) for run in config.runs]
    except ValueError:
        raise BadInputError(f"runs {config.runs} are no ids: flexy status --json names them in full") from None
    with work.database.begin() as connection:
        asked = request_rescore(connection, metric, runs, config.failed, work.settings)
        if asked.replaced != config.replaces:
            raise BadInputError(f"{asked.replaced} scores would be replaced, not {config.replaces}: say that number")
    batches = _missing_batches(work, metric.name)
    if metric.reads:
        _embed(context, work, batches, [metric.name])
    _score(context, work, metric, batches)


@dg.job(description="Compute scores again, saying how many it replaces.")
def rescore_scores() -> None:
    rescore()


class TrialConfig(dg.Config):
    """The form: one image at settings of your choice. What is left out is the engine's own."""

    prompt: str = Field(description="What the image should show.")
    engine: str = Field(
        default="", description="Which model makes it (see flexy models); the first of its set by default."
    )
    negative_prompt: str | None = Field(default=None, description="What it should not show.")
    steps: int | None = Field(default=None, description="Denoising steps, 1 to 1000.")
    guidance: float | None = Field(default=None, description="How strictly it keeps to the prompt, 0 to 100.")
    seed: int = Field(default=0, description="0 to 2147483647: the same seed and settings are the same image.")
    width: int | None = Field(default=None, description="In pixels.")
    height: int | None = Field(default=None, description="In pixels.")

    def trial(self, settings: Settings) -> Trial:
        """The settings, checked. Raises `BadInputError` naming the one that cannot be."""
        return Trial.of(settings, **self.model_dump())


@dg.op(pool="gpu", out=dg.Out(dg.Nothing))
def trial(context: dg.OpExecutionContext, config: TrialConfig, work: dg.ResourceParam[Work]) -> None:
    """Make one image, unless it is there, and fill what its scores lack; the event shows it beside the last trials."""
    asked, problems = config.trial(work.settings), []
    migrate(work.database)
    with work.database.begin(reading=True) as connection:
        there = gallery.find_same_settings(connection, work.settings, asked.to_json())
    if there is None:
        _generate_trial(context, work, asked)
    # An image that a sweep made is left to its sweep.
    if there in (None, asked.image_id):
        fill = [partial(_score, metric=metric) for metric in METRICS.values()]
        for step in (partial(_embed, metrics=_EMBEDDING_METRICS), *fill):
            try:
                step(context, work, batches=[asked.batch])
            except FlexyError as error:
                problems.append(str(error))
    with work.database.begin(reading=True) as connection:
        (card,) = gallery.cards_of_images(connection, work.settings, [there or asked.image_id])
        last, _ = gallery.card_page(connection, work.settings, run_id=asked.run_id, size=8)
    metadata = _trial_metadata(work.store, [card, *(other for other in last if other["id"] != card["id"])])
    key = assets.generated_images.key
    context.log_event(dg.AssetObservation(key, partition=card["batch"], metadata=metadata))
    if problems:
        raise FlexyError("; ".join(dict.fromkeys(problems)))


def _generate_trial(context: dg.OpExecutionContext, work: Work, trial: Trial) -> None:
    with work.database.begin() as connection:
        save_sweep(connection, trial.run_id, trial.engine, None, None)
    with work.slot:
        engine = work.slot.get(registry.find_engine(trial.engine, work.settings))
        made = generation.generate_images(work.database, work.store, engine, trial.row(), lambda _: None)
    if made.failed:
        raise FlexyError(made.failed[0])
    # Not before: a batch without an image is nobody's.
    context.instance.add_dynamic_partitions(SEED_BATCHES, [trial.batch])
    metadata = {"made now": made.made, "run": str(trial.run_id), "image": str(trial.image_id)}
    _report(context, assets.generated_images.key, trial.batch, metadata)


def _trial_metadata(images: ImageStore, trials: Sequence[gallery.ImageCard]) -> dict[str, Any]:
    """A trial as the UI shows it: the image, its scores or why they are missing, and the last trials beside it."""
    trial, others = trials[0], trials[1:]
    metadata: dict[str, Any] = {"image": _contact_sheet(images, [trial], 256), "id": trial["id"]}
    for name, score in trial["scores"].items():
        metadata[METRICS[name].label] = score["reason"] if score["value"] is None else score["value"]
    if others:
        rows = [
            {name: each[name] for name in ("prompt", "steps", "guidance", "seed")}
            | {METRICS[name].label: score["value"] for name, score in each["scores"].items()}
            for each in trials
        ]
        metadata["beside the last trials"] = dg.MetadataValue.md(text_tables.format_markdown_table(rows))
        metadata["their images"] = _contact_sheet(images, trials, 128)
    return metadata


def _contact_sheet(images: ImageStore, shown: Sequence[gallery.ImageCard], side: int) -> dg.MetadataValue:
    found = images.read_many([(each["image_path"], each["image_sha256"]) for each in shown])
    readable = [picture for picture in found if not isinstance(picture, Exception)]
    if not readable:
        return dg.MetadataValue.text(str(found[0]))
    sheet = thumbnails.make_contact_sheet(readable, side=side)
    return dg.MetadataValue.md(thumbnails.markdown_image(", ".join(each["id"] for each in shown), sheet))


def trial_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of `try_image` for these settings of a trial."""
    return {"ops": {trial.name: {"config": dict(settings)}}}


@dg.job(
    # What the launchpad begins with: the whole form.
    config=trial_config(TrialConfig(prompt="").model_dump()),
    description="Make one image at settings of your choice, and score it; what is null or empty is the engine's own.",
)
def try_image() -> None:
    trial()


results = dg.define_asset_job(
    "results",
    selection=dg.AssetSelection.assets("sweep_scores").downstream()
    | dg.AssetSelection.checks(checks.image_checks, checks.score_checks),
    description="The tables, the CSV and the report; then every check.",
)


def request_backfill(
    instance: dg.DagsterInstance, database: Database, images: ImageStore, settings: Settings
) -> dg.RunRequest | dg.SkipReason:
    """One run of `backfill_scores` for every score that is missing and that no run is at, or why there is none.

    Raises `BadInputError` where the table cannot be adopted or the image root is not there.
    """
    end_dead_runs(instance)
    adopt_rows(database, settings)
    register_partitions(instance, database)
    with database.begin(reading=True) as connection:
        missing = count_missing_scores(connection, settings)
        strangers = {} if missing else status.images_of_other_model_set(connection, settings)
    if not missing:
        return dg.SkipReason(backfill.nothing_missing_reason(strangers, settings.models))
    holes = backfill.batches_to_fill(missing, batches_in_progress(instance))
    if not holes:
        return dg.SkipReason("a run is already at everything that is missing")
    images.check()
    return dg.RunRequest(run_config=backfill_config(holes), tags=backfill.backfill_tags(holes, missing))


def register_partitions(instance: dg.DagsterInstance, database: Database) -> list[str]:
    """Make the batches that the table knows partitions that Dagster knows; returns the new ones."""
    known = set(instance.get_dynamic_partitions(SEED_BATCHES))
    with database.begin(reading=True) as connection:
        new = [batch for batch in batch_names(connection) if batch not in known]
    if new:
        instance.add_dynamic_partitions(SEED_BATCHES, new)
    return new


def backfill_config(holes: Mapping[str, list[str]]) -> dict[str, Any]:
    """The configuration of `backfill_scores` for these batches of each metric."""
    embedded = sorted({batch for metric in _EMBEDDING_METRICS for batch in holes.get(metric, ())})
    missing = {name: holes.get(name, []) for name in METRICS} | {names.EMBEDDINGS_ASSET: embedded}
    return {"ops": {names.backfill_op(name): {"config": {"batches": keys}} for name, keys in missing.items()}}
