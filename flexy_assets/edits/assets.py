"""The lineage of edits. Each asset asks, calls and records; the thinking stands in the modules beside it."""

import base64
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import dagster as dg
import polars as pl

from flexy_assets.edits import comparison, metrics, results, sources
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.edits.report import build
from flexy_assets.edits.search.eacps import Parameters
from flexy_assets.edits.search.runner import Searching
from flexy_assets.edits.tasks import EditTask, read_tasks
from flexy_assets.partitions import edit_batches, report_batch
from flexy_assets.reporting import columns, plots
from flexy_assets.reporting.progress import progress
from flexy_assets.reporting.text_tables import markdown
from flexy_assets.reporting.thumbnails import contact_sheet, in_markdown, thumbnail
from flexy_assets.scoring.missing_scores import Scoring
from flexy_assets.storage import edits
from flexy_assets.storage.migrate import migrate
from resources.database import Database
from resources.errors import BadInputError
from resources.images import ImageStore, write_atomically
from resources.models import registry
from resources.models.slot import ModelSlot
from resources.settings import Settings

_BATCHED: dict[str, Any] = {
    "partitions_def": edit_batches,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "pool": "gpu",
}


class EditConfig(dg.Config):
    """A comparison of EACPS and TTFLUX on an edit set, or on one image; the same settings name the same comparison.

    `tasks` is a file of JSON lines ({"id", "image_path", "prompt"}); without it `image` is edited as `prompt` says.
    `budgets` are in full denoises of `steps`, each searched by both methods; TTFLUX is `random` or `zero_order`.
    EACPS chooses by mean rank in PF, CONS, LPIPS and layout, or by the potential pf + alpha·cons − beta·lpips; the
    rest is how it spends its budget (`eacps.Parameters`). With `reproduce` it is EACPS as published.
    """

    tasks: str = ""
    image: str = ""
    prompt: str = ""
    editor: str = ""
    steps: int = 0
    guidance: float = 0.0
    negative_prompt: str | None = None
    budgets: list[int] = [8]
    seed: int = 0
    ttflux: str = "random"
    choose: str = "rank"
    reproduce: bool = False
    alpha: float = 10.0
    beta: float = 3.0
    scouts: int = Parameters.scouts
    local_share: float = Parameters.local_share
    preview: float = Parameters.preview
    keep: float = Parameters.keep
    m_global: int = Parameters.m_global
    k_local: int = Parameters.k_local
    cross: float = Parameters.cross
    t: float = Parameters.t
    strength: float = Parameters.strength
    batch_size: int = 50

    def plan(self, settings: Settings, tasks: str) -> Comparison:
        """The settings, checked. Raises `BadInputError` naming the one that cannot be."""
        editor = self.editor or next(iter(registry.models("editor", settings)))
        entry = registry.find(editor, "editor", settings)
        return Comparison(
            editor=entry.name,
            steps=self.steps or entry.steps,
            guidance=self.guidance or entry.guidance,
            tasks=tasks,
            negative_prompt=self.negative_prompt,
            budgets=tuple(self.budgets),
            seed=self.seed,
            ttflux=self.ttflux,
            choose=self.choose,
            reproduce=self.reproduce,
            alpha=self.alpha,
            beta=self.beta,
            eacps=Parameters.of(self),
            batch_size=self.batch_size,
        )

    def read(self) -> tuple[Path, list[EditTask], list[str]]:
        """The folder that paths are relative to, the tasks, and the lines that were left out."""
        if self.tasks:
            found, skipped = read_tasks(Path(self.tasks))
            return Path(self.tasks).parent, found, [f"{self.tasks} {line}" for line in skipped]
        if not self.image or not self.prompt.strip():
            raise BadInputError("nothing to edit: give an image and a prompt, or an edit set of JSON lines")
        image = Path(self.image)
        return image.parent, [EditTask(image.stem, image.name, self.prompt, 1)], []


@dg.asset(group_name="edits", kinds={"polars", "parquet"}, metadata=columns.columns(sources.TASKS))
def edit_tasks(
    context: dg.AssetExecutionContext,
    config: EditConfig,
    database: dg.ResourceParam[Database],
    images: dg.ResourceParam[ImageStore],
    settings: dg.ResourceParam[Settings],
) -> pl.DataFrame:
    """Source image, prompt and id of each edit. Materialising it plans a comparison and adds its batches."""
    migrate(database)
    config.plan(settings, "")
    folder, tasks, left_out = config.read()
    if not tasks:
        raise BadInputError(f"no edit is left to make: {left_out[0]}")
    brought = sources.bring(images, folder, tasks)
    plan = config.plan(settings, sources.digest(tasks, brought))
    rows = sources.rows(plan, tasks, brought)
    with database.begin() as connection:
        edits.save_run(connection, plan.run_id, plan.to_json(), rows)
    batches = sorted({row.batch for row in rows})
    context.instance.add_dynamic_partitions("edit_batches", batches)
    context.add_output_metadata(
        {
            "comparison": str(plan.run_id),
            "editor": plan.editor,
            "budgets (full denoises)": ", ".join(map(str, plan.budgets)),
            "left out": dg.MetadataValue.json(left_out),
            "batches": dg.MetadataValue.json(batches),
        }
    )
    return sources.table(rows)


def _candidates_asset(method: Literal["eacps", "ttflux"], description: str) -> dg.AssetsDefinition:
    """An asset that carries one method's searches to their end."""

    @dg.asset(
        name=f"{method}_candidates",
        group_name="edits",
        kinds={"diffusers", "table"},
        deps=[edit_tasks],
        description=description,
        **_BATCHED,
    )
    def candidates(
        context: dg.AssetExecutionContext,
        database: dg.ResourceParam[Database],
        images: dg.ResourceParam[ImageStore],
        slot: dg.ResourceParam[ModelSlot],
        settings: dg.ResourceParam[Settings],
    ) -> None:
        work = Scoring(database, images, slot, settings)
        for searching in _searches(work, method, context.partition_keys):
            made = searching.made()
            whole = sum(searching.plan.nfe) * len(searching.tasks)
            before = sum(c.nfe for c in made)
            with slot, progress(method, whole - before, " steps") as bar:
                searching.run(bar.update)
            known = {c.id for c in made}
            after = searching.made()
            for batch, metadata in results.by_batch(searching.tasks, after, known).items():
                shown = [(c.image_path, c.image_sha256) for c in results.sheet(searching.tasks, after, batch)]
                found = [p for p in images.read_many(shown) if not isinstance(p, Exception)]
                if found:
                    picture = in_markdown("sources and candidates", contact_sheet(found))
                    metadata["sources, each before its candidates"] = dg.MetadataValue.md(picture)
                report_batch(context, batch, metadata)

    return candidates


eacps_candidates = _candidates_asset(
    "eacps", "Every candidate of EACPS: fresh seeds, then variants of the best; with scores and cost."
)
ttflux_candidates = _candidates_asset(
    "ttflux", "Every candidate of TTFLUX: random (or zero-order) search by one verifier; with scores and cost."
)


def _searches(work: Scoring, method: str, batches: list[str]) -> list[Searching]:
    """The searches of these batches, a comparison at a time."""
    with work.database.begin(reading=True) as connection:
        tasks = edits.tasks(connection, batches)
        plans = {run: edits.plan(connection, run) for run in dict.fromkeys(task.run_id for task in tasks)}
    lost = set(batches) - {task.batch for task in tasks}
    if lost:
        raise BadInputError(f"batch {min(lost)} belongs to no comparison: materialise edit_tasks")
    return [
        Searching(work, Comparison.from_json(plan), method, [task for task in tasks if task.run_id == run])
        for run, plan in plans.items()
        if plan
    ]


@dg.asset(group_name="edits", kinds={"transformers", "table"}, deps=[eacps_candidates, ttflux_candidates], **_BATCHED)
def edit_selections(
    context: dg.AssetExecutionContext,
    database: dg.ResourceParam[Database],
    images: dg.ResourceParam[ImageStore],
    slot: dg.ResourceParam[ModelSlot],
    settings: dg.ResourceParam[Settings],
) -> None:
    """One winner a task, method and budget, and what judges say of it that did not select."""
    work = Scoring(database, images, slot, settings)
    with slot:
        for method in METHODS:
            for searching in _searches(work, method, context.partition_keys):
                made = searching.made()
                chosen = list(searching.winners(made))
                with database.begin() as connection:
                    edits.record_selections(connection, chosen)
                metrics.hold_out(work, searching.tasks, chosen)
                metrics.ask_a_judge(work, searching.tasks, chosen)
                if metrics.by_rule(searching.plan.editor):
                    metrics.tell_the_truth(work, searching.tasks, made)
    with database.begin(reading=True) as connection:
        counts = edits.selected(connection, context.partition_keys)
    for batch in context.partition_keys:
        report_batch(context, batch, {"selected": counts.get(batch, 0)})


class Which(dg.Config):
    """Which comparison: its id or the beginning of it; the newest by default."""

    comparison: str = ""


@dg.asset(
    group_name="edits",
    kinds={"polars", "parquet"},
    deps=[edit_selections],
    metadata=columns.columns(results.SCORES, name="Which of its search's candidates"),
)
def edit_scores(context: dg.AssetExecutionContext, config: Which, database: dg.ResourceParam[Database]) -> pl.DataFrame:
    """One row a candidate and step that was looked at, of one comparison, with its scores, potential and cost."""
    with database.begin(reading=True) as connection:
        known = [
            run for run in edits.runs(connection) if run.hex.startswith(config.comparison.replace("-", "").lower())
        ]
        if not known:
            raise BadInputError(f"no comparison {config.comparison!r}: materialise edit_tasks, or run flexy compare")
        found = edits.table(connection, known[-1:], metrics.METRICS)
    plan = _plan_of(database, found)
    spent = results.spent(found).to_dicts()
    context.add_output_metadata({"comparison": str(plan.run_id), "spent": dg.MetadataValue.md(markdown(spent))})
    return results.with_potential(found, plan)


def _plan_of(database: Database, scores: pl.DataFrame) -> Comparison:
    with database.begin(reading=True) as connection:
        plan = edits.plan(connection, UUID(scores["run"][0]))
    if plan is None:
        raise BadInputError(f"comparison {scores['run'][0]} is not in this database: materialise edit_scores anew")
    return Comparison.from_json(plan)


@dg.asset(group_name="edits", kinds={"scipy", "parquet"}, metadata=columns.columns(comparison.COMPARISON))
def edit_comparison(context: dg.AssetExecutionContext, edit_scores: pl.DataFrame) -> pl.DataFrame:
    """EACPS against TTFLUX: wins, ties, losses, gains with 95 % intervals and a sign test, by metric and budget."""
    levels = plots.edit_comparison(results.levels(edit_scores))
    context.add_output_metadata(columns.plot("each search's mean by each metric, with 95 % intervals", levels))
    return results.compared(edit_scores)


@dg.asset(group_name="edits", kinds={"html"})
def edit_report(
    context: dg.AssetExecutionContext,
    edit_scores: pl.DataFrame,
    edit_comparison: pl.DataFrame,
    database: dg.ResourceParam[Database],
    images: dg.ResourceParam[ImageStore],
    settings: dg.ResourceParam[Settings],
) -> None:
    """One HTML file: the answer, the win table and the curve, source, winners and all candidates side by side."""
    paths = build.pictures_needed(edit_scores)
    found = images.read_many([(path, None) for path in paths])
    thumbnails = {
        path: f"data:image/webp;base64,{base64.b64encode(thumbnail(picture)).decode()}"
        for path, picture in zip(paths, found, strict=True)
        if not isinstance(picture, Exception)
    }
    about = results.about(_plan_of(database, edit_scores), edit_scores)
    level = results.levels(edit_scores)
    page = build.render(edit_scores, edit_comparison, level, thumbnails, about, results.ROLES)
    path = settings.tables / "edit_report.html"
    write_atomically(path, page.encode())
    link = dg.MetadataValue.url(f"{settings.files_url}/{path.name}")
    context.add_output_metadata({"file": dg.MetadataValue.path(path), "open": link})
