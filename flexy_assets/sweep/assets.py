"""The sweep's assets: each queries the tables, calls a module of this folder and records the result."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import polars as pl
from pydantic import Field

from flexy_assets import names
from flexy_assets.partitions import SEED_BATCHES, report_partition, seed_batches
from flexy_assets.reporting import thumbnails
from flexy_assets.reporting.columns import column_schema_metadata, plot_metadata
from flexy_assets.reporting.progress import progress_bar
from flexy_assets.reporting.text_tables import format_markdown_table
from flexy_assets.scoring import agreement, makers, missing_scores
from flexy_assets.scoring.missing_scores import ScoringOutcome
from flexy_assets.scoring.work import Work
from flexy_assets.storage import status
from flexy_assets.storage.embeddings import read_stored_vectors
from flexy_assets.storage.export import export_csv
from flexy_assets.storage.flexyface import check_required_columns
from flexy_assets.storage.makers import record_maker, suspect_metrics
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import find_existing_images, find_sweep, list_sweeps, read_timings, save_sweep
from flexy_assets.storage.scores import (
    read_batch,
    read_scores,
    replace_other_scores,
    select_pending_scores,
    summarize_batch,
)
from flexy_assets.sweep import analysis, generation, plots
from flexy_assets.sweep.acquisition import extend_sweep
from flexy_assets.sweep.generation import GenerationOutcome
from flexy_assets.sweep.plan import (
    MAX_IMAGES,
    PLAN_SCHEMA,
    SettingRange,
    Sweep,
    check_engine_ranges,
    check_engine_schedulers,
    check_engine_settings,
    default_range,
    images_in_time,
    parse_sizes,
)
from flexy_assets.sweep.report import build
from flexy_assets.sweep.status_tables import status_summary, status_tables
from resources.database import Database
from resources.errors import BadInputError
from resources.images import ImageStore
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.models import registry
from resources.models.schedulers import SCHEDULERS
from resources.prompts import Prompt, check_prompt, read_prompts
from resources.settings import Settings

Report = Callable[[str, Mapping[str, Any]], None]
"""What takes a finished partition and its metadata."""

_BATCHED: dict[str, Any] = {
    "partitions_def": seed_batches,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    # Admits one step at a time, so that two Dagster runs never hold two models.
    "pool": "gpu",
}


MAX_HOURS = 10_000


class SweepConfig(dg.Config):
    """A new sweep, or more images for one: the same settings name the same sweep. Empty and 0 are the engine's own."""

    engine: str = Field(
        default="",
        description="The engine, by default the first of the model set: "
        + ", ".join(name for name, entry in registry.MODELS.items() if entry.kind == "engine")
        + ".",
    )
    images: int = Field(default=120, description=f"How many images the sweep is to have, 1 to {MAX_IMAGES:,}.")
    hours: float = Field(
        default=0,
        description="As many images as the engine makes in this time, by its images so far, and not `images`:"
        f" above 0 to {MAX_HOURS:,}; 0 is off.",
    )
    steps: str = Field(
        default="",
        description='Denoising steps, 1 to 1000, in quotes, as YAML reads 4:40 as a number: "LOW:HIGH",'
        ' "LOW:HIGH:STRIDE" or a list, "4,8,16". By default the engine\'s range, else 4:60.',
    )
    guidance: str = Field(
        default="",
        description="How closely images follow the prompt, 0 to 100, written as steps are. By default the engine's"
        " range, else 0.5:12; none for an engine without guidance.",
    )
    prompts: list[str] = Field(default=[], description="What images should show; by default those of `prompts_file`.")
    prompts_file: str = Field(
        default="",
        description="A file of prompts: text, JSON, JSON lines, CSV or TSV. By default the engine's own prompts.",
    )
    negative_prompt: str | None = Field(default=None, description="What no image should show; by default nothing.")
    negative_prompts: list[str] = Field(
        default=[],
        description='Several to compare, each used equally often, "" for none; by default `negative_prompt` alone.',
    )
    schedulers: str = Field(
        default="",
        description=f'One or several of {", ".join(SCHEDULERS)}, each used equally often ("euler,ddim").'
        " By default the engine's own.",
    )
    sizes: str = Field(
        default="",
        description='One or several, each used equally often ("512,768x1024"). By default `width` and `height`.',
    )
    seed: int = Field(default=0, description="0 or more: the same seed and settings are the same sweep.")
    sampling: str = Field(
        default="uniform",
        description="How settings are drawn: uniform (independent), even (low discrepancy), or paired (the same prompt"
        " and seed at several settings).",
    )
    width: int = Field(default=0, description="In pixels, a multiple of 8 from 8 to 8192; 0 is the engine's own.")
    height: int = Field(default=0, description="In pixels, a multiple of 8 from 8 to 8192; 0 is the engine's own.")
    batch_size: int = Field(default=100, description="Images of a partition, 1 to 10000.")
    extend: str = Field(
        default="",
        description="The beginning of a sweep's id: it gets `images` more where they tell most about its best settings,"
        " and its other settings stay. While some of them are still to be made, no more are added. By default a new"
        " sweep is planned.",
    )
    weights: dict[str, float] = Field(
        default={},
        description="With `extend`, the metrics' weights in the overall score, 0 or more"
        ' ({"clip_score": 2}). By default equal, shared by metrics that repeat each other.',
    )

    def sweep(self, settings: Settings) -> Sweep:
        """Return the validated settings. Raises `BadInputError` naming an invalid one."""
        if not 1 <= self.images <= MAX_IMAGES:
            raise BadInputError(f"invalid images {self.images}: must be from 1 to {MAX_IMAGES:,}")
        if not 0 <= self.hours <= MAX_HOURS:
            raise BadInputError(f"invalid hours {self.hours:g}: must be from 0 to {MAX_HOURS:,}")
        entry = registry.find_model(self.engine or registry.model_names("engine", settings)[0], "engine", settings)
        sizes = parse_sizes(self.sizes) if self.sizes else ((self.width or entry.side, self.height or entry.side),)
        negative_prompts = tuple(self.negative_prompts)
        negative_prompt = self.negative_prompt if len(negative_prompts) != 1 else negative_prompts[0]
        for negative in (negative_prompt or "", *negative_prompts):
            check_prompt(negative, "the negative prompt")
        given = {"guidance": self.guidance, "negative_prompt": negative_prompt or "".join(negative_prompts)}
        for sides in sizes:
            check_engine_settings(entry, self.seed, *sides, given)
        schedulers = tuple(name.strip() for name in self.schedulers.split(",")) if self.schedulers else ()
        check_engine_schedulers(entry, schedulers)
        file = Path(self.prompts_file) if self.prompts_file else entry.prompts
        guided = "guidance" not in entry.ignored_settings
        prompts = tuple(map(Prompt, self.prompts)) or (read_prompts(file) if file else ())
        categories, complexities = (
            tuple(getattr(prompt, group) or "" for prompt in prompts) for group in ("category", "complexity")
        )
        steps = SettingRange.parse(self.steps or default_range(entry.steps_range, "4:60"), "steps")
        guidance = SettingRange.parse(self.guidance or default_range(entry.guidance_range, "0.5:12"), "guidance")
        check_engine_ranges(entry, steps, guidance)
        return Sweep(
            engine=entry.name,
            prompts=tuple(prompt.text for prompt in prompts),
            categories=categories if any(categories) else (),
            complexities=complexities if any(complexities) else (),
            steps=steps,
            guidance=guidance if guided else None,
            seed=self.seed,
            sampling=self.sampling,
            negative_prompt=negative_prompt,
            negative_prompts=negative_prompts if len(negative_prompts) > 1 else (),
            schedulers=schedulers,
            sizes=sizes if len(sizes) > 1 else (),
            width=sizes[0][0],
            height=sizes[0][1],
            batch_size=self.batch_size,
        )


def plan_images(database: Database, config: SweepConfig, settings: Settings) -> tuple[Sweep, int]:
    """Return the sweep and how many images it is to have, of a migrated database; nothing is written.

    Raises `BadInputError` for invalid settings, for hours of an engine nobody has timed, and for a sweep that cannot be
    extended.
    """
    with database.begin(reading=True) as connection:
        known = list_sweeps(connection)
        if config.extend:
            row = find_sweep(known, config.extend)
            if not row.plan:
                raise BadInputError(f"cannot extend sweep {config.extend!r}: it has no plan: flexy sweep new plans one")
            sweep, target = Sweep.from_json(row.plan), row.target or 0
            if sweep.extensions and sweep.extensions[-1].stop == target:
                image_ids = [UUID(image_id) for image_id in sweep.rows(sweep.extensions[-1].start, target)["image_id"]]
                if len(find_existing_images(connection, image_ids)) < len(image_ids):
                    return sweep, target
            scores = read_scores(connection, settings, [sweep.run_id])
            suspect = suspect_metrics(connection, settings)
            return extend_sweep(sweep, target, scores, config.images, config.weights, suspect), target + config.images
        sweep = config.sweep(settings)
        images = config.images
        if config.hours:
            images = images_in_time(sweep, read_timings(connection, sweep.engine), 3600 * config.hours)
    plans = {
        row.id: (Sweep.from_json(row.plan), row.target or 0) for row in known if row.id == sweep.run_id and row.plan
    }
    sweep, target = plans.get(sweep.run_id, (sweep, 0))
    return sweep, max(images, target)


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep in the tables: its partitions, the plan of the images still to be made, and what is said of it."""

    sweep: Sweep
    batches: list[str]
    to_generate: pl.DataFrame
    metadata: dict[str, Any]


def plan_sweep(work: Work, instance: dg.DagsterInstance, config: SweepConfig) -> PlannedSweep:
    """Plan a sweep, or extend one, and add its partitions. Raises `BadInputError` that names an invalid setting."""
    migrate(work.database)
    sweep, target = plan_images(work.database, config, work.settings)
    with work.database.begin() as connection:
        check_required_columns(connection)
        save_sweep(connection, sweep.run_id, sweep.engine, target, sweep.to_json())
    plan = sweep.rows(0, target)
    batches = plan["batch"].unique(maintain_order=True).to_list()
    instance.add_dynamic_partitions(SEED_BATCHES, batches)
    to_generate = generation.images_to_generate(work.database, work.store, plan)
    ignored = ", ".join(sorted(registry.MODELS[sweep.engine].ignored_settings))
    metadata: dict[str, Any] = {
        "sweep": str(sweep.run_id),
        "engine": sweep.engine,
        "target": target,
        "settings the engine ignores": ignored or "nothing",
        "images to generate": len(to_generate),
        "batches": dg.MetadataValue.md(", ".join(batches[:50])),
    }
    return PlannedSweep(sweep, batches, to_generate, metadata)


@dg.asset(group_name="sweep", kinds={"polars", "parquet"}, metadata=column_schema_metadata(PLAN_SCHEMA))
def sweep_plan(context: dg.AssetExecutionContext, config: SweepConfig, work: dg.ResourceParam[Work]) -> pl.DataFrame:
    """One row an image that is not generated yet: engine, prompt, steps, guidance, seed, batch.

    Materializing it plans a sweep, or extends one, and adds its partitions; the sensor `planned_sweeps` then has its
    images made and scored.
    """
    planned = plan_sweep(work, context.instance, config)
    work.results["sweep_plan"] = planned.sweep
    context.add_output_metadata(planned.metadata)
    return planned.to_generate


@dg.asset(group_name="sweep", kinds={"diffusers", "table"}, deps=[sweep_plan], **_BATCHED)
def generated_images(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
    """Image files and their rows in `bench_run_results`; existing ones are not generated again.

    One whose file is missing or not as recorded is made again from its plan.
    """
    generate_partitions(work, context.partition_keys, partial(report_partition, context))


def generate_partitions(work: Work, batches: Sequence[str], report: Report) -> None:
    """Make the images of the partitions that do not exist or are lost."""
    plans = {batch: _find_plan(work.database, batch) for batch in batches}
    plans_to_generate = {
        batch: generation.images_to_generate(work.database, work.store, plan) for batch, plan in plans.items()
    }
    with work.slot, progress_bar("images generated", sum(map(len, plans_to_generate.values()))) as bar:
        for batch, plan in plans_to_generate.items():
            outcome = GenerationOutcome()
            if len(plan):
                model = registry.find_engine(plan["engine"][0], work.settings)
                engine = work.slot.get(model)
                made_on = generation.describe_provenance(model, work.slot)
                outcome = generation.generate_images(
                    work.database, work.store, engine, plan, bar.update, made_on, plans[batch]
                )
            work.record_partition("generated_images", batch, outcome)
            report(batch, _images_metadata(work.database, work.store, batch, outcome))


def _find_plan(database: Database, batch: str) -> pl.DataFrame:
    with database.begin(reading=True) as connection:
        known_sweeps = list_sweeps(connection)
        adopted = len(read_batch(connection, batch)) > 0
    for run in known_sweeps:
        if run.plan and names.partition_prefix(run.id) == batch.rpartition("_")[0]:
            return Sweep.from_json(run.plan).rows_of_batch(batch, run.target or 0)
    if adopted:  # another program generated them: nothing to do
        return pl.DataFrame(schema=PLAN_SCHEMA)
    raise BadInputError(f"unknown partition {batch}: materialize sweep_plan, or choose a sweep that flexy status lists")


def _images_metadata(database: Database, images: ImageStore, batch: str, outcome: GenerationOutcome) -> dict[str, Any]:
    with database.begin(reading=True) as connection:
        rows = read_batch(connection, batch)
    sample = rows.sort("steps", "guidance").gather_every(max(1, len(rows) // 40))
    read = images.read_many([(path, None) for path in sample["image_path"]])
    readable = [image for image in read if not isinstance(image, Exception)]
    metadata: dict[str, Any] = {"images": len(rows), "images generated": outcome.made}
    if outcome.restored or outcome.replaced:
        metadata |= {"lost images made again": outcome.restored, "lost images replaced": outcome.replaced}
    if outcome.failed:
        metadata |= {"images failed": len(outcome.failed), "last error": outcome.failed[-1]}
    for setting in ("steps", "guidance"):
        if rows[setting].count():
            metadata[setting] = f"{rows[setting].min()!s} to {rows[setting].max()!s}"
    elapsed = rows["elapsed_ms"].drop_nulls()
    if len(elapsed):
        metadata["seconds per image"] = round(elapsed.sum() / len(elapsed) / 1000, 4)
    if readable:
        sheet = thumbnails.markdown_image(f"{len(readable)} images", thumbnails.make_contact_sheet(readable))
        metadata["contact sheet"] = dg.MetadataValue.md(sheet)
    return metadata


@dg.asset(group_name="scores", kinds={"transformers", "table"}, deps=[generated_images], **_BATCHED)
def clip_embeddings(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
    """L2-normalised image embeddings, and text embeddings of the prompts, for the scores computed from them."""
    embed_partitions(work, context.partition_keys, partial(report_partition, context))


def embed_partitions(work: Work, batches: Sequence[str], report: Report, needed_for: Collection[str] = ()) -> None:
    """Embed the partitions' images; with `needed_for` only those that the missing scores of these metrics need."""
    count = work.count_pending(work.pending_embeddings(needed_for=needed_for), batches)
    encoder = work.fingerprint("clip")
    with work.slot, progress_bar("images embedded", count) as bar:
        for batch, outcome in missing_scores.embed_images(work, batches, bar.update, needed_for=needed_for):
            counts = {"images embedded": outcome.done, "images failed": outcome.failed}
            report(batch, counts | {"encoder": encoder})


def score_partitions(work: Work, metric: Metric, batches: Sequence[str], report: Report) -> None:
    """Compute the partitions' missing scores of one metric, as the existing scores of its column were made.

    Raises `UnknownMakerError` where it is unknown what made them.
    """
    with work.slot:
        own, metric = metric, _maker_of_missing(work, metric, batches)
        if metric.reads and metric.reads != own.reads:
            for _ in missing_scores.embed_images(work, batches, lambda _: None, metric.reads, [metric.name]):
                pass
        with progress_bar(metric.name, work.count_pending(work.pending_scores(metric), batches)) as bar:
            for batch, outcome in missing_scores.score_images(work, metric, batches, bar.update):
                work.record_partition(names.score_asset(metric.name), batch, outcome)
                report(batch, _scores_metadata(work.database, metric, batch, outcome))


def score_beside(work: Work, metric: Metric, batches: Sequence[str]) -> None:
    """Compute Flexy's scores of a metric for all images of the partitions and keep them beside its column."""
    metric = metric.beside
    with work.database.begin() as connection:
        record_maker(connection, makers.own_maker(work, metric), [])
        replace_other_scores(connection, metric.name, work.score_fingerprint(metric), work.settings)
    with work.slot:
        if metric.reads:
            for _ in missing_scores.embed_images(work, batches, lambda _: None, metric.reads, [metric.name]):
                pass
        with progress_bar(metric.name, work.count_pending(work.pending_scores(metric), batches)) as bar:
            for batch, outcome in missing_scores.score_images(work, metric, batches, bar.update):
                work.record_partition(names.score_asset(metric.name), batch, outcome)


def needs_clip_embeddings(work: Work, metric: Metric, batches: Sequence[str]) -> bool:
    """Return whether the metric's missing scores in the partitions are computed from `clip_embeddings`."""
    missing = work.count_pending(select_pending_scores(metric.name, work.settings), batches)
    return bool(missing) and makers.reads_default_encoder(work, metric)


def _maker_of_missing(work: Work, metric: Metric, batches: Sequence[str]) -> Metric:
    """Return what computes the partitions' missing scores; the metric itself where none is missing."""
    missing = select_pending_scores(metric.name, work.settings)
    return makers.find_maker(work, metric) if work.count_pending(missing, batches) else metric


def _score_asset(metric: Metric) -> dg.AssetsDefinition:
    """Return the asset that computes one metric, partition by partition."""

    @dg.asset(
        key=asset_key_of(metric),
        group_name="scores",
        kinds={"transformers", "table"},
        deps=[clip_embeddings if metric.reads else generated_images],
        description=f"`{metric.name}` ({metric.label}): {metric.description}.",
        **_BATCHED,
    )
    def scores(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
        score_partitions(work, metric, context.partition_keys, partial(report_partition, context))

    return scores


def _scores_metadata(database: Database, metric: Metric, batch: str, outcome: ScoringOutcome) -> dict[str, Any]:
    with database.begin(reading=True) as connection:
        statistics = summarize_batch(connection, metric.name, batch)
    missing = statistics.pop("images") - statistics["scored"]
    counts: dict[str, Any] = {"scores computed": outcome.done, "scores failed": outcome.failed, "missing": missing}
    if outcome.done:
        counts["computed by"] = agreement.describe_variant(metric)
    return counts | {name: round(float(value), 4) for name, value in statistics.items() if value is not None}


def asset_key_of(metric: Metric) -> dg.AssetKey:
    """Return the key of the asset that computes a metric."""
    return dg.AssetKey(names.score_asset(metric.name))


SCORE_ASSETS = [_score_asset(metric) for metric in METRICS.values()]


@dg.asset(
    group_name="scores",
    kinds={"polars", "parquet"},
    deps=SCORE_ASSETS,
    metadata=column_schema_metadata(analysis.SCORES_TABLE_SCHEMA),
)
def sweep_scores(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> pl.DataFrame:
    """One row an image with its settings and scores; null where a score is missing."""
    with work.database.begin(reading=True) as connection:
        scores = read_scores(connection, work.settings)
        counts = status.read_status(connection, work.settings)
        counts["image_roots"] = status.count_image_roots(connection, work.store)
        counts["lost"] = status.find_lost_images(connection, work.store)
    tables = status_tables(counts)
    shown = {name: dg.MetadataValue.md(format_markdown_table(table)) for name, table in tables.items()}
    context.add_output_metadata({"summary": status_summary(counts)} | shown)
    return scores


@dg.asset(group_name="scores", kinds={"csv"}, deps=[sweep_scores])
def sweep_csv(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
    """FlexyFace's CSV: the images that have all four scores, ordered by steps and guidance."""
    path = work.settings.tables / "sweep.csv"
    rows = export_csv(work.database, path)
    context.add_output_metadata(_file_metadata(work.settings, path) | {"dagster/row_count": rows})


class AnalysisConfig(dg.Config):
    """The weights of the metrics, and the smallest worthwhile gain of one more step."""

    weights: dict[str, float] = Field(
        default={},
        description='The metrics\' weights in the overall score, 0 or more ({"clip_score": 2, "hps_v2_score": 1}).'
        " By default equal, shared by metrics that repeat each other.",
    )
    least_gain: dict[str, float] = Field(
        default={},
        description="What one more step must gain, by metric and in its unit, above 0. By default"
        " its smallest worthwhile one.",
    )


@dg.asset(
    group_name="results", kinds={"scipy", "parquet"}, metadata=column_schema_metadata(analysis.CORRELATIONS_SCHEMA)
)
def metric_correlations(context: dg.AssetExecutionContext, sweep_scores: pl.DataFrame) -> pl.DataFrame:
    """Correlations of the metrics: Pearson, Spearman and within prompts, with 95 % intervals."""
    table = analysis.correlate_metrics(sweep_scores)
    context.add_output_metadata(plot_metadata("rank correlations", plots.plot_metric_correlations(table)))
    return table


@dg.asset(group_name="results", kinds={"numpy", "parquet"}, metadata=column_schema_metadata(analysis.COMPONENTS_SCHEMA))
def metric_components(sweep_scores: pl.DataFrame) -> pl.DataFrame:
    """Principal components of the metrics: how many independent qualities they measure."""
    return analysis.principal_components(sweep_scores)


@dg.asset(group_name="results", kinds={"numpy", "parquet"}, metadata=column_schema_metadata(analysis.TIMES_SCHEMA))
def sweep_times(sweep_scores: pl.DataFrame) -> pl.DataFrame:
    """Seconds per image, and what each step adds."""
    return analysis.times_table(sweep_scores)


_ANALYSIS_SCHEMAS = {
    "sweep_regression": analysis.REGRESSION_SCHEMA,
    "sweep_response": analysis.RESPONSE_SCHEMA,
    "sweep_effects": analysis.EFFECTS_SCHEMA,
    "diminishing_returns": analysis.RETURNS_SCHEMA,
    "pareto_front": analysis.PARETO_SCHEMA,
    "sweet_spots": analysis.SWEET_SPOTS_SCHEMA,
    "sweep_comparison": analysis.SWEEP_COMPARISON_SCHEMA,
}
_ANALYSIS_DESCRIPTIONS = {
    "sweep_regression": "Regression of each metric on steps and guidance: the forms averaged, with their R² held out.",
    "sweep_response": "Response of each metric to steps, guidance and both, with 95 % bands and slopes.",
    "sweep_effects": "Effects of steps, guidance and their interaction on each metric.",
    "diminishing_returns": "Number of steps from which one more gains too little, by metric, with an interval.",
    "pareto_front": "Pareto front of quality and seconds, with each setting's probability of being on it.",
    "sweet_spots": "Best settings, those not significantly worse (95 %), and the quickest that is as good.",
    "sweep_comparison": "Means of engines, sweeps and prompts, raw and adjusted to the same settings.",
}


@dg.multi_asset(
    outs={
        name: dg.AssetOut(
            group_name="results",
            kinds={"scikitlearn", "parquet"},
            description=_ANALYSIS_DESCRIPTIONS[name],
            metadata=column_schema_metadata(schema),
            is_required=False,
        )
        for name, schema in _ANALYSIS_SCHEMAS.items()
    },
    can_subset=True,
)
def sweep_analysis(
    context: dg.AssetExecutionContext,
    config: AnalysisConfig,
    sweep_scores: pl.DataFrame,
    work: dg.ResourceParam[Work],
) -> Iterator[dg.Output[pl.DataFrame]]:
    """Tables of the fitted responses, all with the same weights."""
    with work.database.begin(reading=True) as connection:
        suspect = suspect_metrics(connection, work.settings)
    responses = analysis.fit_responses(sweep_scores, config.weights, suspect)
    tables: dict[str, tuple[Callable[..., pl.DataFrame], Callable[[pl.DataFrame], bytes | None]]] = {
        "sweep_regression": (analysis.regression_table, lambda _: None),
        "sweep_response": (analysis.response_table, plots.plot_sweep_response),
        "sweep_effects": (analysis.effects_table, plots.plot_sweep_effects),
        "diminishing_returns": (
            partial(analysis.diminishing_returns_table, least_gain=config.least_gain),
            plots.plot_diminishing_returns,
        ),
        "pareto_front": (analysis.find_pareto_front, plots.plot_pareto_front),
        "sweet_spots": (analysis.find_sweet_spots, partial(plots.plot_sweet_spots, scores=sweep_scores)),
        "sweep_comparison": (partial(analysis.compare_groups, sweep_scores), plots.plot_sweep_comparison),
    }
    for name, (table_of, plot_of) in tables.items():
        if name in context.op_execution_context.selected_output_names:
            table = table_of(responses)
            picture = plot_metadata(name.replace("_", " "), plot_of(table))
            yield dg.Output(table, output_name=name, metadata=picture | _summary_metadata(table))


def _summary_metadata(table: pl.DataFrame) -> dict[str, dg.MetadataValue[Any]]:
    """Return the summaries of a table with such a column, engine by engine."""
    if "summary" not in table.columns:
        return {}
    rows, labels = table.to_dicts(), analysis.COLUMN_LABELS
    lines = [f"- {row['engine']}, {labels[row['target']]}: {row['summary'] or row['note']}" for row in rows]
    return {"summary": dg.MetadataValue.md("\n".join(lines))}


_REPORT_TABLES = {
    "correlations": "metric_correlations",
    "components": "metric_components",
    "times": "sweep_times",
    "regression": "sweep_regression",
    "response": "sweep_response",
    "effects": "sweep_effects",
    "returns": "diminishing_returns",
    "front": "pareto_front",
    "spots": "sweet_spots",
    "comparison": "sweep_comparison",
}
"""The asset of each of `AnalysisTables`."""


@dg.asset(
    group_name="results",
    kinds={"html"},
    deps=[sweep_csv],
    ins={name: dg.AssetIn(asset) for name, asset in _REPORT_TABLES.items()},
)
def sweep_report(
    context: dg.AssetExecutionContext, sweep_scores: pl.DataFrame, work: dg.ResourceParam[Work], **tables: pl.DataFrame
) -> None:
    """One HTML file with the results, plots and images; it needs no network."""
    path = work.settings.tables / "sweep_report.html"
    read_vectors = partial(read_stored_vectors, work.database)
    build.write_sweep_report(path, sweep_scores, analysis.AnalysisTables(**tables), work.store.read, read_vectors)
    context.add_output_metadata(_file_metadata(work.settings, path))


def _file_metadata(settings: Settings, path: Path) -> dict[str, Any]:
    """Return the file's path, and the address at which `make ui` serves it: browsers block links to local files."""
    return {"file": dg.MetadataValue.path(path), "open": dg.MetadataValue.url(f"{settings.files_url}/{path.name}")}
