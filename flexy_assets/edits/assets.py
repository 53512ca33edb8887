"""The lineage of edits. Each asset asks, calls and records; the thinking stands in the modules beside it."""

import base64
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import dagster as dg
import polars as pl

from flexy_assets.edits import comparison, metrics, plots, results, sources
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.edits.report import build
from flexy_assets.edits.search.eacps import EacpsParameters
from flexy_assets.edits.search.runner import SearchRunner
from flexy_assets.edits.tasks import EditTask, read_tasks
from flexy_assets.partitions import edit_batches, report_partition
from flexy_assets.reporting import columns
from flexy_assets.reporting.progress import progress_bar
from flexy_assets.reporting.text_tables import format_markdown_table
from flexy_assets.reporting.thumbnails import make_contact_sheet, make_thumbnail, markdown_image
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from flexy_assets.storage.migrate import migrate
from resources.database import Database
from resources.errors import BadInputError
from resources.files import write_atomically
from resources.models import registry
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
    scouts: int = EacpsParameters.scouts
    local_share: float = EacpsParameters.local_share
    preview: float = EacpsParameters.preview
    keep: float = EacpsParameters.keep
    m_global: int = EacpsParameters.m_global
    k_local: int = EacpsParameters.k_local
    cross: float = EacpsParameters.cross
    t: float = EacpsParameters.t
    strength: float = EacpsParameters.strength
    batch_size: int = 50

    def plan(self, settings: Settings, tasks: str) -> Comparison:
        """The settings, checked. Raises `BadInputError` naming the one that cannot be."""
        editor = self.editor or next(iter(registry.model_names("editor", settings)))
        entry = registry.find_model(editor, "editor", settings)
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
            eacps=EacpsParameters.of(self),
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


@dg.asset(
    group_name="edits", kinds={"polars", "parquet"}, metadata=columns.column_schema_metadata(sources.EDIT_TASKS_SCHEMA)
)
def edit_tasks(context: dg.AssetExecutionContext, config: EditConfig, work: dg.ResourceParam[Work]) -> pl.DataFrame:
    """Source image, prompt and id of each edit. Materialising it plans a comparison and adds its batches."""
    migrate(work.database)
    config.plan(work.settings, "")
    folder, tasks, left_out = config.read()
    if not tasks:
        raise BadInputError(f"no edit is left to make: {left_out[0]}")
    brought = sources.copy_sources(work.store, folder, tasks)
    plan = config.plan(work.settings, sources.dataset_digest(tasks, brought))
    rows = sources.task_rows(plan, tasks, brought)
    with work.database.begin() as connection:
        edits.save_comparison(connection, plan.run_id, plan.to_json(), rows)
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
    return sources.task_table(rows)


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
    def candidates(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
        for searching in _run_search(work, method, context.partition_keys):
            made = searching.made()
            whole = sum(searching.plan.nfe) * len(searching.tasks)
            before = sum(c.nfe for c in made)
            with work.slot, progress_bar(method, whole - before, " steps") as bar:
                searching.run(bar.update)
            known = {c.id for c in made}
            after = searching.made()
            for batch, metadata in results.group_by_batch(searching.tasks, after, known).items():
                shown = [
                    (c.image_path, c.image_sha256) for c in results.contact_sheet_rows(searching.tasks, after, batch)
                ]
                found = [p for p in work.store.read_many(shown) if not isinstance(p, Exception)]
                if found:
                    picture = markdown_image("sources and candidates", make_contact_sheet(found))
                    metadata["sources, each before its candidates"] = dg.MetadataValue.md(picture)
                report_partition(context, batch, metadata)

    return candidates


eacps_candidates = _candidates_asset(
    "eacps", "Every candidate of EACPS: fresh seeds, then variants of the best; with scores and cost."
)
ttflux_candidates = _candidates_asset(
    "ttflux", "Every candidate of TTFLUX: random (or zero-order) search by one verifier; with scores and cost."
)


def _run_search(work: Work, method: str, batches: list[str]) -> list[SearchRunner]:
    """The searches of these batches, a comparison at a time."""
    with work.database.begin(reading=True) as connection:
        tasks = edits.edit_tasks_of(connection, batches)
        plans = {run: edits.comparison_plan(connection, run) for run in dict.fromkeys(task.run_id for task in tasks)}
    lost = set(batches) - {task.batch for task in tasks}
    if lost:
        raise BadInputError(f"batch {min(lost)} belongs to no comparison: materialise edit_tasks")
    return [
        SearchRunner(work, Comparison.from_json(plan), method, [task for task in tasks if task.run_id == run])
        for run, plan in plans.items()
        if plan
    ]


@dg.asset(group_name="edits", kinds={"transformers", "table"}, deps=[eacps_candidates, ttflux_candidates], **_BATCHED)
def edit_selections(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
    """One winner a task, method and budget, and what judges say of it that did not select."""
    with work.slot:
        for method in METHODS:
            for searching in _run_search(work, method, context.partition_keys):
                made = searching.made()
                chosen = list(searching.winners(made))
                with work.database.begin() as connection:
                    edits.record_selections(connection, chosen)
                metrics.score_independent(work, searching.tasks, chosen)
                metrics.score_with_judge(work, searching.tasks, chosen)
                if metrics.has_ground_truth(searching.plan.editor):
                    metrics.score_ground_truth(work, searching.tasks, made)
    with work.database.begin(reading=True) as connection:
        counts = edits.selected_candidates(connection, context.partition_keys)
    for batch in context.partition_keys:
        report_partition(context, batch, {"selected": counts.get(batch, 0)})


class EditScoresConfig(dg.Config):
    """Which comparison: its id or the beginning of it; the newest by default."""

    comparison: str = ""


@dg.asset(
    group_name="edits",
    kinds={"polars", "parquet"},
    deps=[edit_selections],
    metadata=columns.column_schema_metadata(results.EDIT_SCORES_SCHEMA, name="Which of its search's candidates"),
)
def edit_scores(
    context: dg.AssetExecutionContext, config: EditScoresConfig, work: dg.ResourceParam[Work]
) -> pl.DataFrame:
    """One row a candidate and step that was looked at, of one comparison, with its scores, potential and cost."""
    with work.database.begin(reading=True) as connection:
        known = [
            run
            for run in edits.comparison_ids(connection)
            if run.hex.startswith(config.comparison.replace("-", "").lower())
        ]
        if not known:
            raise BadInputError(f"no comparison {config.comparison!r}: materialise edit_tasks, or run flexy compare")
        found = edits.edit_scores_table(connection, known[-1:], metrics.EDIT_METRICS)
    plan = _plan_of(work.database, found)
    spent = results.denoising_cost(found).to_dicts()
    context.add_output_metadata(
        {"comparison": str(plan.run_id), "spent": dg.MetadataValue.md(format_markdown_table(spent))}
    )
    return results.with_potential(found, plan)


def _plan_of(database: Database, scores: pl.DataFrame) -> Comparison:
    with database.begin(reading=True) as connection:
        plan = edits.comparison_plan(connection, UUID(scores["run"][0]))
    if plan is None:
        raise BadInputError(f"comparison {scores['run'][0]} is not in this database: materialise edit_scores anew")
    return Comparison.from_json(plan)


@dg.asset(
    group_name="edits",
    kinds={"scipy", "parquet"},
    metadata=columns.column_schema_metadata(comparison.COMPARISON_SCHEMA),
)
def edit_comparison(context: dg.AssetExecutionContext, edit_scores: pl.DataFrame) -> pl.DataFrame:
    """EACPS against TTFLUX: wins, ties, losses, gains with 95 % intervals and a sign test, by metric and budget."""
    levels = plots.plot_edit_comparison(results.winner_levels(edit_scores))
    context.add_output_metadata(columns.plot_metadata("each search's mean by each metric, with 95 % intervals", levels))
    return results.compare_winners(edit_scores)


@dg.asset(group_name="edits", kinds={"html"})
def edit_report(
    context: dg.AssetExecutionContext,
    edit_scores: pl.DataFrame,
    edit_comparison: pl.DataFrame,
    work: dg.ResourceParam[Work],
) -> None:
    """One HTML file: the answer, the win table and the curve, source, winners and all candidates side by side."""
    paths = build.edit_thumbnails_needed(edit_scores)
    found = work.store.read_many([(path, None) for path in paths])
    thumbnails = {
        path: f"data:image/webp;base64,{base64.b64encode(make_thumbnail(picture)).decode()}"
        for path, picture in zip(paths, found, strict=True)
        if not isinstance(picture, Exception)
    }
    about = results.describe_comparison(_plan_of(work.database, edit_scores), edit_scores)
    level = results.winner_levels(edit_scores)
    page = build.render_edit_report(edit_scores, edit_comparison, level, thumbnails, about, results.ROLES)
    path = work.settings.tables / "edit_report.html"
    write_atomically(path, page.encode())
    link = dg.MetadataValue.url(f"{work.settings.files_url}/{path.name}")
    context.add_output_metadata({"file": dg.MetadataValue.path(path), "open": link})
