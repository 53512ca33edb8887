"""The sweep's lineage. Each asset asks, calls and records; the thinking stands in the modules beside it."""

import base64
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from flexy_assets.partitions import report_batch, seed_batches
from flexy_assets.progress import progress
from flexy_assets.storage import queries
from flexy_assets.storage.migrate import migrate
from flexy_assets.sweep import analysis, csv, generation, pictures, report, scoring
from flexy_assets.sweep.plan import Range, Sweep, read_prompts
from flexy_assets.sweep.scoring import Outcome, Scoring
from resources.database import Database
from resources.errors import BadInputError
from resources.images import ImageStore, write_atomically
from resources.models.registry import ENGINES, engine_entry
from resources.models.slot import ModelSlot
from resources.scorers import METRICS, Metric
from resources.settings import Settings

# Pinned with Dagster's version; without this every command and server prints it once an asset.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)

_BATCHED: dict[str, Any] = {
    "partitions_def": seed_batches,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    # Admits one step at a time, so that two runs never hold two models.
    "pool": "gpu",
}


class SweepConfig(dg.Config):
    """A new sweep, or more images for one: the same settings name the same run.

    `steps` and `guidance` are LOW:HIGH or LOW:HIGH:STRIDE. Prompts come from the list, the file (one
    a line) or, without either, the engine's own.
    """

    engine: str = ""
    images: int = 120
    steps: str = "4:60"
    guidance: str = "0.5:12"
    prompts: list[str] = []
    prompts_file: str = ""
    negative_prompt: str | None = None
    seed: int = 0
    sampling: str = "uniform"
    width: int = 0
    height: int = 0
    batch_size: int = 100

    def sweep(self, settings: Settings) -> Sweep:
        """The settings, checked. Raises `BadInputError` naming the one that cannot be."""
        if not 1 <= self.images <= 10_000_000:
            raise BadInputError(f"{self.images} images cannot be made: ask for at least 1")
        if self.seed < 0:
            raise BadInputError(f"seed {self.seed} is negative: use 0 or more")
        known = ENGINES[settings.models]
        entry = engine_entry(self.engine or next(iter(known), ""), settings)
        file = Path(self.prompts_file) if self.prompts_file else entry.prompts
        prompts = tuple(self.prompts) or (read_prompts(file) if file else ())
        return Sweep(
            engine=entry.name,
            prompts=prompts,
            steps=Range.parse(self.steps, "steps"),
            guidance=Range.parse(self.guidance, "guidance"),
            seed=self.seed,
            sampling=self.sampling,
            negative_prompt=self.negative_prompt,
            width=self.width or entry.side,
            height=self.height or entry.side,
            batch_size=self.batch_size,
        )


@dg.asset(group_name="sweep", kinds={"table"})
def sweep_plan(
    context: dg.AssetExecutionContext,
    config: SweepConfig,
    database: dg.ResourceParam[Database],
    settings: dg.ResourceParam[Settings],
) -> pl.DataFrame:
    """One row an image still to be made: engine, prompt, steps, guidance, seed, batch.

    Materialising it starts a sweep (or tops one up) and adds its seed batches.
    """
    sweep = config.sweep(settings)
    migrate(database)
    with database.begin() as connection:
        known = {run.id: run.target or 0 for run in queries.runs(connection)}
        target = max(config.images, known.get(sweep.run_id, 0))
        queries.save_run(connection, sweep.run_id, sweep.engine, target, sweep.to_json())
    plan = sweep.rows(0, target)
    context.instance.add_dynamic_partitions("seed_batches", plan["batch"].unique(maintain_order=True).to_list())
    wanted = generation.missing(database, plan)
    context.add_output_metadata(
        {
            "run": str(sweep.run_id),
            "engine": sweep.engine,
            "target": target,
            "images still to be made": len(wanted),
            "batches": dg.MetadataValue.md(", ".join(plan["batch"].unique(maintain_order=True).to_list()[:50])),
        }
    )
    return wanted


@dg.asset(group_name="sweep", kinds={"diffusers"}, deps=[sweep_plan], **_BATCHED)
def generated_images(
    context: dg.AssetExecutionContext,
    database: dg.ResourceParam[Database],
    images: dg.ResourceParam[ImageStore],
    slot: dg.ResourceParam[ModelSlot],
    settings: dg.ResourceParam[Settings],
) -> None:
    """Image files and their rows in `bench_run_results`; those that are there are not made again."""
    plans = {batch: _plan_of(database, batch) for batch in context.partition_keys}
    wanted = {batch: generation.missing(database, plan) for batch, plan in plans.items()}
    with progress("images made", sum(map(len, wanted.values()))) as bar:
        for batch, plan in wanted.items():
            if len(plan):
                engine = slot.get(engine_entry(plan["engine"][0], settings))
                generation.generate(database, images, engine, plan, bar.update)
            report_batch(context, batch, _images_metadata(database, images, batch, len(plan)))


def _plan_of(database: Database, batch: str) -> pl.DataFrame:
    with database.begin(reading=True) as connection:
        known = queries.runs(connection)
    for run in known:
        if run.plan and run.id.hex[:8] == batch.rpartition("_")[0]:
            return Sweep.from_json(run.plan).rows_of_batch(batch, run.target or 0)
    raise BadInputError(f"batch {batch} belongs to no run: materialise sweep_plan, or see flexy status for the runs")


def _images_metadata(database: Database, images: ImageStore, batch: str, made: int) -> dict[str, Any]:
    with database.begin(reading=True) as connection:
        rows = queries.images_of_batch(connection, batch)
    shown = rows.sort("steps", "guidance").gather_every(max(1, len(rows) // 40))
    found = [
        p for p in images.read_many([(path, None) for path in shown["image_path"]]) if not isinstance(p, Exception)
    ]
    metadata: dict[str, Any] = {
        "images": len(rows),
        "made now": made,
        "steps": "{} to {}".format(*rows.select(pl.min("steps"), high=pl.max("steps")).row(0)),
        "guidance": "{} to {}".format(*rows.select(pl.min("guidance"), high=pl.max("guidance")).row(0)),
    }
    elapsed = rows["elapsed_ms"].drop_nulls()
    if len(elapsed):
        metadata["seconds an image"] = round(elapsed.sum() / len(elapsed) / 1000, 4)
    if found:
        sheet = base64.b64encode(pictures.contact_sheet(found)).decode()
        metadata["contact sheet"] = dg.MetadataValue.md(f"![{len(found)} images](data:image/png;base64,{sheet})")
    return metadata


@dg.asset(group_name="sweep", kinds={"transformers"}, deps=[generated_images], **_BATCHED)
def clip_embeddings(
    context: dg.AssetExecutionContext,
    database: dg.ResourceParam[Database],
    images: dg.ResourceParam[ImageStore],
    slot: dg.ResourceParam[ModelSlot],
    settings: dg.ResourceParam[Settings],
) -> None:
    """L2-normalised image vectors, and text vectors of the distinct prompts: three scores rest on them."""
    work = Scoring(database, images, slot, settings)
    name = work.encoder_name("clip")
    with database.begin(reading=True) as connection:
        wanted = sum(len(queries.unembedded(connection, name, b, settings.models)) for b in context.partition_keys)
    with progress("images embedded", wanted) as bar:
        for batch in context.partition_keys:
            outcome = scoring.embed(work, batch, told=bar.update)
            report_batch(context, batch, {"embedded now": outcome.done, "failed": outcome.failed, "encoder": name})


def _score_asset(
    name: str,
    metric: Metric,
    source: dg.AssetsDefinition,
    score: Callable[[Scoring, Metric, str, Callable[[int], None]], Outcome],
    description: str,
) -> dg.AssetsDefinition:
    """An asset that fills one metric's column, batch by batch."""

    @dg.asset(name=name, group_name="sweep", kinds={"transformers"}, deps=[source], description=description, **_BATCHED)
    def scores(
        context: dg.AssetExecutionContext,
        database: dg.ResourceParam[Database],
        images: dg.ResourceParam[ImageStore],
        slot: dg.ResourceParam[ModelSlot],
        settings: dg.ResourceParam[Settings],
    ) -> None:
        work = Scoring(database, images, slot, settings)
        with database.begin(reading=True) as connection:
            keys = context.partition_keys
            wanted = sum(len(queries.pending(connection, metric.column, b, settings.models)) for b in keys)
        with progress(metric.column, wanted) as bar:
            for batch in context.partition_keys:
                outcome = score(work, metric, batch, bar.update)
                report_batch(context, batch, _scores_metadata(database, metric, batch, outcome))

    return scores


def _scores_metadata(database: Database, metric: Metric, batch: str, outcome: Outcome) -> dict[str, Any]:
    with database.begin(reading=True) as connection:
        column = queries.images_of_batch(connection, batch)[metric.column]
    values = column.drop_nulls()
    metadata: dict[str, Any] = {
        "scored": len(values),
        "scored now": outcome.done,
        "failed now": outcome.failed,
        "missing": column.null_count(),
    }
    if len(values):
        lowest, mean, highest = values.to_frame("v").select(pl.min("v"), m=pl.mean("v"), h=pl.max("v")).row(0)
        metadata |= {"lowest": round(lowest, 4), "mean": round(mean, 4), "highest": round(highest, 4)}
    return metadata


clip_scores = _score_asset(
    "clip_scores",
    METRICS["clip_score"],
    clip_embeddings,
    scoring.score_embeddings,
    "`clip_score`: cosine of image and prompt (CLIP ViT-L/14), how well the image fits its prompt.",
)
aesthetic_scores = _score_asset(
    "aesthetic_scores",
    METRICS["aesthetic_score"],
    clip_embeddings,
    scoring.score_embeddings,
    "`aesthetic_score`: LAION's aesthetic predictor V1, about 1 to 10.",
)
aes_v2_scores = _score_asset(
    "aes_v2_scores",
    METRICS["aes_v2_score"],
    clip_embeddings,
    scoring.score_embeddings,
    "`aes_v2_score`: aesthetic predictor V2 (sac+logos+ava1), about 1 to 10.",
)
hps_v2_scores = _score_asset(
    "hps_v2_scores",
    METRICS["hps_v2_score"],
    generated_images,
    scoring.score_images,
    "`hps_v2_score`: HPS v2.1, which image people would prefer for the prompt; comparable within one prompt.",
)
SCORES = (clip_scores, aesthetic_scores, aes_v2_scores, hps_v2_scores)


@dg.asset(group_name="results", kinds={"polars"}, deps=list(SCORES))
def sweep_scores(context: dg.AssetExecutionContext, database: dg.ResourceParam[Database]) -> pl.DataFrame:
    """One row an image with its settings and four scores; NULL where a score is missing."""
    with database.begin(reading=True) as connection:
        scores = queries.scores(connection)
    context.add_output_metadata({f"{name} missing": scores[name].null_count() for name in METRICS})
    return scores


@dg.asset(group_name="results", kinds={"csv"}, deps=[sweep_scores])
def sweep_csv(
    context: dg.AssetExecutionContext, database: dg.ResourceParam[Database], settings: dg.ResourceParam[Settings]
) -> None:
    """FlexyFace's CSV: the images that have all four scores, ordered by steps and guidance."""
    with database.begin(reading=True) as connection:
        rows = queries.csv_rows(connection)
    path = settings.tables / "sweep.csv"
    csv.write(path, rows)
    context.add_output_metadata(
        {"file": dg.MetadataValue.path(path), "open": _link(settings, path), "dagster/row_count": len(rows)}
    )


@dg.asset(group_name="results", kinds={"scipy"})
def metric_correlations(sweep_scores: pl.DataFrame) -> pl.DataFrame:
    """Which metrics say the same thing: Pearson's and Spearman's correlation with 95 % intervals."""
    return analysis.correlations(sweep_scores)


@dg.asset(group_name="results", kinds={"scikitlearn"})
def sweep_regression(sweep_scores: pl.DataFrame) -> pl.DataFrame:
    """What steps and guidance do to each metric: models with their cross-validated R²."""
    return analysis.regression(sweep_scores)


@dg.asset(group_name="results", kinds={"polars"})
def sweet_spots(sweep_scores: pl.DataFrame, sweep_regression: pl.DataFrame) -> pl.DataFrame:
    """The settings with the best predicted scores, and the quickest that are nearly as good."""
    return analysis.sweet_spots(sweep_scores, sweep_regression)


@dg.asset(group_name="results", kinds={"html"}, deps=[sweep_csv])
def sweep_report(
    context: dg.AssetExecutionContext,
    sweep_scores: pl.DataFrame,
    metric_correlations: pl.DataFrame,
    sweep_regression: pl.DataFrame,
    sweet_spots: pl.DataFrame,
    images: dg.ResourceParam[ImageStore],
    settings: dg.ResourceParam[Settings],
) -> None:
    """One HTML file with the answer, the plots and the pictures; it needs no network."""
    chosen = sweep_scores.filter(pl.col("image_id").is_in(report.pictures_needed(sweep_scores)))
    found = images.read_many([(path, None) for path in chosen["image_path"]])
    thumbnails = {
        image_id: pictures.thumbnail(picture)
        for image_id, picture in zip(chosen["image_id"], found, strict=True)
        if not isinstance(picture, Exception)
    }
    page = report.render(sweep_scores, metric_correlations, sweep_regression, sweet_spots, thumbnails)
    path = settings.tables / "sweep_report.html"
    write_atomically(path, page.encode())
    context.add_output_metadata({"file": dg.MetadataValue.path(path), "open": _link(settings, path)})


def _link(settings: Settings, path: Path) -> dg.UrlMetadataValue:
    """Where `make ui` serves the file: browsers do not follow links from a page to a file."""
    return dg.MetadataValue.url(f"{settings.files_url}/{path.name}")


def counts(metadata: Mapping[str, Any]) -> int:
    """How many images or scores a batch's materialisation says it added."""
    return sum(int(metadata[name].value) for name in ("made now", "scored now") if name in metadata)
