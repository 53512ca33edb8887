"""The assets of edits. They query, call and record; the logic is in the modules of this package."""

import base64
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import dagster as dg
import polars as pl
from pydantic import Field

from flexy_assets.edits import comparison, metrics, plots, results, sources
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.edits.report import build
from flexy_assets.edits.search.eacps import parameter, plan_from_config
from flexy_assets.edits.search.runner import SearchRunner
from flexy_assets.edits.tasks import EditTask, read_tasks
from flexy_assets.partitions import edit_batches, report_partition
from flexy_assets.reporting import columns
from flexy_assets.reporting.contact_sheets import contact_sheet_metadata
from flexy_assets.reporting.progress import progress_bar
from flexy_assets.reporting.text_tables import format_markdown_table
from flexy_assets.reporting.thumbnails import make_thumbnail
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from flexy_assets.storage.migrate import migrate
from resources.database import Database
from resources.errors import BadInputError
from resources.files import write_atomically
from resources.models import registry
from resources.settings import Settings

_GROUP: Any = {"group_name": "edits"}
_BATCHED: Any = _GROUP | {"partitions_def": edit_batches, "backfill_policy": dg.BackfillPolicy.single_run()}
_BATCHED["pool"] = "gpu"


class EditConfig(dg.Config):
    """A comparison of EACPS and TTFLUX on an edit set, or on one image; equal settings give the same comparison."""

    tasks: str = Field(
        default="",
        description='The edit set, a file of JSON lines ({"id", "image_path", "prompt"}); by default one `image`.',
    )
    image: str = Field(default="", description="The image to edit by `prompt`, where there is no edit set.")
    prompt: str = Field(default="", description="The instruction for `image`.")
    editor: str = Field(default="", description="The editor (see flexy models); by default the first of the model set.")
    steps: int = Field(default=0, description="Denoising steps of a full denoise, 1 to 1000; 0 is the editor's own.")
    guidance: float = Field(
        default=0.0, description="How closely edits follow the instruction, above 0; 0 is the editor's own."
    )
    negative_prompt: str | None = Field(default=None, description="What no edit should show; by default nothing.")
    budgets: list[int] = Field(
        default=[8], description="In full denoises, 1 to 1000 each: both methods search each task with each of them."
    )
    seed: int = Field(default=0, description="0 or more: the same seed and settings are the same comparison.")
    ttflux: str = Field(default="random", description="How TTFLUX searches: random or zero_order.")
    choose: str = Field(
        default="rank",
        description="What EACPS selects by: rank (the mean rank in PF, CONS, LPIPS and layout) or potential"
        " (pf + alpha·cons − beta·lpips).",
    )
    reproduce: bool = Field(
        default=False, description="EACPS as published: full denoises, seeds by arithmetic, the potential."
    )
    alpha: float = Field(default=10.0, description="The weight of CONS in the potential, any finite number.")
    beta: float = Field(default=3.0, description="The weight of LPIPS in the potential, any finite number.")
    scouts: int = parameter("scouts")
    local_share: float = parameter("local_share")
    preview: float = parameter("preview")
    keep: float = parameter("keep")
    m_global: int = parameter("m_global")
    k_local: int = parameter("k_local")
    cross: float = parameter("cross")
    t: float = parameter("t")
    strength: float = parameter("strength")
    batch_size: int = Field(default=50, description="Tasks of a partition, 1 to 1000.")

    def plan(self, settings: Settings, tasks: str) -> Comparison:
        """Return the plan. Raises `BadInputError` that names the invalid setting."""
        editor = self.editor or next(iter(registry.model_names("editor", settings)))
        entry = registry.find_model(editor, "editor", settings)
        own = {"steps": self.steps or entry.steps, "guidance": self.guidance or entry.guidance, "tasks": tasks}
        return plan_from_config(Comparison, self, editor=entry.name, budgets=tuple(self.budgets), **own)

    def read_tasks(self) -> tuple[Path, list[EditTask], list[str]]:
        """Return the folder of the images, the tasks, and the skipped lines with the reason."""
        if self.tasks:
            tasks, skipped = read_tasks(Path(self.tasks))
            return Path(self.tasks).parent, tasks, [f"{self.tasks} {line}" for line in skipped]
        if not self.image or not self.prompt.strip():
            raise BadInputError("nothing to edit: give an image and an instruction, or an edit set of JSON lines")
        image = Path(self.image)
        if not image.is_file():
            raise BadInputError(f"no image {image}: name the file to edit")
        return image.parent, [EditTask(image.stem, image.name, self.prompt, 1)], []


@dg.asset(kinds={"polars", "parquet"}, metadata=columns.column_schema_metadata(sources.EDIT_TASKS_SCHEMA), **_GROUP)
def edit_tasks(context: dg.AssetExecutionContext, config: EditConfig, work: dg.ResourceParam[Work]) -> pl.DataFrame:
    """Source image, instruction and id of each edit. Materializing it plans a comparison and adds its partitions."""
    migrate(work.database)
    config.plan(work.settings, "")
    folder, tasks, skipped = config.read_tasks()
    if not tasks:
        raise BadInputError(f"no valid line in the edit set: {skipped[0]}")
    copies = sources.copy_sources(work.store, folder, tasks)
    plan = config.plan(work.settings, sources.dataset_digest(tasks, copies))
    planned = sources.PlannedComparison(plan, sources.task_rows(plan, tasks, copies), skipped)
    with work.database.begin() as connection:
        edits.save_comparison(connection, plan.run_id, plan.to_json(), planned.tasks)
    context.instance.add_dynamic_partitions("edit_batches", planned.batches)
    work.results["edit_tasks"] = planned
    context.add_output_metadata(
        {
            "comparison": str(plan.run_id),
            "editor": plan.editor,
            "budgets (full denoises)": ", ".join(map(str, plan.budgets)),
            "skipped": dg.MetadataValue.json(skipped),
            "batches": dg.MetadataValue.json(planned.batches),
        }
    )
    return sources.task_table(planned.tasks)


def _candidates_asset(method: Literal["eacps", "ttflux"], description: str) -> dg.AssetsDefinition:
    """Return the asset that runs one method's searches."""

    named: Any = {"name": f"{method}_candidates", "description": description}

    @dg.asset(kinds={"diffusers", "table"}, deps=[edit_tasks], **named, **_BATCHED)
    def candidates(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
        for runner in _search_runners(work, method, context.partition_keys):
            known = runner.candidates()
            with work.slot, progress_bar(method, runner.remaining_nfe(known), " steps") as bar:
                runner.run(bar.update)
            candidates = runner.candidates()
            counts = results.batch_metadata(runner.tasks, candidates, {candidate.id for candidate in known})
            for batch, metadata in counts.items():
                rows = results.contact_sheet_rows(runner.tasks, candidates, batch)
                sheet = contact_sheet_metadata(work.store, "sources, each before its candidates", rows)
                report_partition(context, batch, metadata | sheet)

    return candidates


eacps_candidates = _candidates_asset(
    "eacps", "Every candidate of EACPS: new seeds, then variants of the best; with scores and cost."
)
ttflux_candidates = _candidates_asset(
    "ttflux", "Every candidate of TTFLUX: random (or zero-order) search by one verifier; with scores and cost."
)


def _search_runners(work: Work, method: str, batches: list[str]) -> list[SearchRunner]:
    """Return the searches of these partitions, one runner per comparison."""
    with work.database.begin(reading=True) as connection:
        tasks = edits.edit_tasks_of(connection, batches)
        plans = {run: edits.comparison_plan(connection, run) for run in dict.fromkeys(task.run_id for task in tasks)}
    unknown = set(batches) - {task.batch for task in tasks}
    if unknown:
        raise BadInputError(f"unknown partition {min(unknown)}: materialize edit_tasks")
    return [
        SearchRunner(work, Comparison.from_json(plan), method, [task for task in tasks if task.run_id == run])
        for run, plan in plans.items()
        if plan
    ]


@dg.asset(kinds={"transformers", "table"}, deps=[eacps_candidates, ttflux_candidates], **_BATCHED)
def edit_selections(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
    """One winner per task, method and budget, with the scores of independent metrics."""
    with work.slot:
        for method in METHODS:
            for runner in _search_runners(work, method, context.partition_keys):
                candidates = runner.candidates()
                winners = list(runner.winners(candidates))
                with work.database.begin() as connection:
                    edits.record_selections(connection, winners)
                metrics.score_independent(work, runner.tasks, winners)
                if metrics.has_ground_truth(runner.plan.editor):
                    metrics.score_ground_truth(work, runner.tasks, candidates)
    with work.database.begin(reading=True) as connection:
        counts = edits.selected_candidates(connection, context.partition_keys)
    for batch in context.partition_keys:
        report_partition(context, batch, {"selected": counts.get(batch, 0)})


class EditScoresConfig(dg.Config):
    """Which comparison."""

    comparison: str = Field(default="", description="The beginning of its id, by default the newest.")


_SCORES = columns.column_schema_metadata(results.EDIT_SCORES_SCHEMA, name="The candidate's name within its search")


@dg.asset(kinds={"polars", "parquet"}, deps=[edit_selections], metadata=_SCORES, **_GROUP)
def edit_scores(
    context: dg.AssetExecutionContext, config: EditScoresConfig, work: dg.ResourceParam[Work]
) -> pl.DataFrame:
    """One row per candidate and previewed or last step of one comparison, with scores, potential and cost."""
    with work.database.begin(reading=True) as connection:
        prefix = config.comparison.replace("-", "").lower()
        matches = [run for run in edits.comparison_ids(connection) if run.hex.startswith(prefix)]
        if not matches:
            remedy = "materialize edit_tasks or run `flexy compare`"
            raise BadInputError(f"unknown comparison {config.comparison!r}: {remedy}")
        candidates = edits.edit_scores_table(connection, matches[-1:], metrics.EDIT_METRICS)
    plan = _find_plan(work.database, candidates)
    cost = dg.MetadataValue.md(format_markdown_table(results.denoising_cost(candidates).to_dicts()))
    context.add_output_metadata({"comparison": str(plan.run_id), "cost": cost})
    return results.with_potential(candidates, plan)


def _find_plan(database: Database, scores: pl.DataFrame) -> Comparison:
    with database.begin(reading=True) as connection:
        plan = edits.comparison_plan(connection, UUID(scores["run"][0]))
    if plan is None:
        raise BadInputError(f"unknown comparison {scores['run'][0]}: materialize edit_scores again")
    return Comparison.from_json(plan)


@dg.asset(kinds={"scipy", "parquet"}, metadata=columns.column_schema_metadata(comparison.COMPARISON_SCHEMA), **_GROUP)
def edit_comparison(context: dg.AssetExecutionContext, edit_scores: pl.DataFrame) -> pl.DataFrame:
    """EACPS against TTFLUX: wins, ties, losses, gains with 95 % intervals and a sign test, by metric and budget."""
    levels = plots.plot_edit_comparison(results.winner_levels(edit_scores))
    context.add_output_metadata(columns.plot_metadata("mean of each search by metric, with 95 % intervals", levels))
    return results.compare_winners(edit_scores)


@dg.asset(kinds={"html"}, **_GROUP)
def edit_report(
    context: dg.AssetExecutionContext,
    edit_scores: pl.DataFrame,
    edit_comparison: pl.DataFrame,
    work: dg.ResourceParam[Work],
) -> None:
    """One HTML file: summary, comparison and curves, and each task's source, winners and candidates side by side."""
    paths = build.edit_thumbnails_needed(edit_scores)
    images = work.store.read_many([(path, None) for path in paths])
    thumbnails = {
        path: f"data:image/webp;base64,{base64.b64encode(make_thumbnail(image)).decode()}"
        for path, image in zip(paths, images, strict=True)
        if not isinstance(image, Exception)
    }
    about = results.describe_comparison(_find_plan(work.database, edit_scores), edit_scores)
    level = results.winner_levels(edit_scores)
    page = build.render_edit_report(edit_scores, edit_comparison, level, thumbnails, about, results.COMPARED_METRICS)
    path = work.settings.tables / "edit_report.html"
    write_atomically(path, page.encode())
    link = dg.MetadataValue.url(f"{work.settings.files_url}/{path.name}")
    context.add_output_metadata({"file": dg.MetadataValue.path(path), "open": link})
