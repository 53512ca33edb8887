"""The assets of inpainting. They query, call and record; the logic is in the modules of this package."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from flexy_assets.edits.search.eacps import parameter, plan_from_config
from flexy_assets.inpaint import import_tasks, metrics, push_predictions, refine, review
from flexy_assets.inpaint.import_tasks import TaskImporter, TaskSource
from flexy_assets.inpaint.plan import SWAP_NAME, InpaintPlan
from flexy_assets.partitions import label_batches, report_partition
from flexy_assets.reporting import columns
from flexy_assets.reporting.contact_sheets import contact_sheet_metadata
from flexy_assets.reporting.progress import progress_bar
from flexy_assets.reporting.text_tables import format_markdown_table
from flexy_assets.scoring.work import Work
from flexy_assets.storage import labels
from flexy_assets.storage.edits import EditTaskRow
from flexy_assets.storage.locks import exclusive_lock
from flexy_assets.storage.migrate import migrate
from resources.database import Database
from resources.errors import BadInputError
from resources.files import write_atomically
from resources.label_studio.client import LabelStudioClient, LabelStudioError
from resources.models import registry
from resources.settings import Settings

_GROUP: Any = {"group_name": "labels"}
_BATCHED: Any = _GROUP | {"partitions_def": label_batches, "backfill_policy": dg.BackfillPolicy.single_run()}
_GPU: Any = _BATCHED | {"pool": "gpu"}

MAX_SHEET_TASKS, MAX_IMPORT_SHEET_TASKS = 6, 24  # on the contact sheets of a partition and of an import


class LabelConfig(dg.Config):
    """The tasks to import, of an export or of a project."""

    export: str = Field(default="", description="A file that Label Studio exported (JSON); by default the project.")
    project: int | None = Field(
        default=None,
        description="The number of a project on the Label Studio server, 1 or more; by default that of"
        " FLEXY_LABEL_STUDIO_PROJECT.",
    )
    task_ids: list[str] = Field(default=[], description="The names of the tasks (data.id), by default all.")
    batch_size: int = Field(default=50, description="Tasks of a partition, 1 to 1000.")

    def check(self, settings: Settings) -> None:
        """Raises `BadInputError` unless there is exactly one source, and if its server is not configured."""
        if not 1 <= self.batch_size <= 1000:
            raise BadInputError(f"invalid batch_size {self.batch_size}: must be from 1 to 1000 tasks")
        if self.export and self.project is not None:
            raise BadInputError("give either an export (a file) or a project, not both")
        if not self.export:
            if self.project is None and settings.label_studio_project is None:
                raise BadInputError("nothing to import: give an export (a file), or a project on your Label Studio")
            LabelStudioClient.from_settings(settings)

    def read(self, settings: Settings) -> TaskSource:
        """Return the tasks. Raises `FlexyError` where they cannot be read."""
        self.check(settings)
        if self.export:
            return import_tasks.source_from_export(Path(self.export)).only(self.task_ids, self.export)
        project = settings.label_studio_project if self.project is None else self.project
        studio = LabelStudioClient.from_settings(settings)
        return import_tasks.source_from_project(studio, int(project or 0)).only(self.task_ids, f"project {project}")


@dg.asset(kinds={"polars", "parquet"}, metadata=columns.column_schema_metadata(labels.LABEL_TASKS_SCHEMA), **_GROUP)
def label_tasks(context: dg.AssetExecutionContext, config: LabelConfig, work: dg.ResourceParam[Work]) -> pl.DataFrame:
    """Scene, mask, character and human verdicts of each Label Studio task. Materializing it imports tasks."""
    migrate(work.database)
    source = config.read(work.settings)
    importer = TaskImporter(work.database, work.store, work.settings, source)
    imported = importer.reserve(config.batch_size)
    context.instance.add_dynamic_partitions("label_batches", imported.batches)
    with progress_bar("tasks imported", len(source.tasks), " tasks") as bar:
        imported = importer.fetch(imported, bar.update)
    summary = import_tasks.summarize_import(source, imported)
    work.results["label_tasks"] = summary
    usable = [task for task in imported.tasks if not task.error][:MAX_IMPORT_SHEET_TASKS]
    files = [file for task in usable for file in task.scene_mask_and_character]
    counts = {"tasks": imported.usable, "new": imported.new, "changed": imported.changed}
    lists = {name: getattr(summary, name) for name in ("skipped", "notes", "verdicts")} | {"batches": imported.batches}
    context.add_output_metadata(
        {**counts, "images fetched": imported.fetched}
        | {name: dg.MetadataValue.json(value) for name, value in lists.items()}
        | contact_sheet_metadata(work.store, "scene, mask and character of each", files, columns=12)
    )
    with work.database.begin(reading=True) as connection:
        return labels.label_tasks_table(labels.label_tasks_of(connection))


class InpaintConfig(dg.Config):
    """How swapped faces are refined inside their masks. Equal settings give the same run: give all steps the same."""

    editor: str = Field(default="", description="The editor (see flexy models), by default the first that edits faces.")
    steps: int = Field(default=0, description="Denoising steps of a full denoise, 1 to 1000; 0 is the editor's own.")
    guidance: float = Field(
        default=0.0, description="How closely it follows the instruction, above 0; 0 is the editor's own."
    )
    prompt: str = Field(default=InpaintPlan.prompt, description="The instruction for tasks without their own.")
    negative_prompt: str | None = Field(default=None, description="What no face should show; by default nothing.")
    budget: int = Field(default=InpaintPlan.budget, description="In full denoises of `steps`, 0 (only swaps) to 1000.")
    widen: float = Field(
        default=InpaintPlan.widen,
        description="How far around the mask the editor may change the image, 0 to 1 of the mask's longer side.",
    )
    seed: int = Field(default=0, description="0 or more: the same seed and settings are the same run.")
    alpha: float = Field(
        default=InpaintPlan.alpha, description="The weight of consistency in the selection, any finite number."
    )
    beta: float = Field(
        default=InpaintPlan.beta, description="The weight of quality in the selection, any finite number."
    )
    gamma: float = Field(
        default=InpaintPlan.gamma, description="The weight of identity in the selection, any finite number."
    )
    scouts: int = parameter("scouts")
    local_share: float = parameter("local_share")
    m_global: int = parameter("m_global")
    k_local: int = parameter("k_local")
    cross: float = parameter("cross")
    t: float = parameter("t")
    strength: float = parameter("strength")

    def plan(self, settings: Settings) -> InpaintPlan:
        """Return the plan. Raises `BadInputError` that names the invalid setting."""
        editor = self.editor or registry.find_face_editor(settings)
        if editor is None:
            weights: Any = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
            return InpaintPlan(SWAP_NAME, steps=1, guidance=1.0, budget=0, **weights)
        entry = registry.find_model(editor, "editor", settings)
        own = {"steps": self.steps or entry.steps, "guidance": self.guidance or entry.guidance}
        return plan_from_config(InpaintPlan, self, editor=entry.name, **own)


def _read_tasks(database: Database, batches: Sequence[str]) -> list[labels.LabelTaskRow]:
    migrate(database)
    with database.begin(reading=True) as connection:
        return labels.label_tasks_of(connection, batches)


@dg.asset(kinds={"onnx", "table"}, deps=[label_tasks], **_GPU)
def face_swaps(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
    """The character's face instead of the one at the mask, and the similarity of both before and after."""
    tasks = _read_tasks(work.database, context.partition_keys)
    with work.slot, progress_bar("faces swapped", len(tasks), " tasks") as bar:
        swapped = refine.swap_faces(work, tasks, bar.update)
    for batch in context.partition_keys:
        own = [task for task in tasks if task.batch == batch]
        swaps = {task: swapped[task.id] for task in own if task.id in swapped}
        done = {task: swap for task, swap in swaps.items() if swap.image_path}
        similarities = [(swap.identity_before or -1, swap.identity_after or -1) for swap in done.values()]
        left = {task.name: swaps[task].reason if task in swaps else task.error for task in own if task not in done}
        files = [file for task, swap in list(done.items())[:MAX_SHEET_TASKS] for file in (task, swap)]
        metadata = {
            "swapped": len(done),
            "unchanged": dg.MetadataValue.json(left),
            "higher identity": f"{sum(after > before for before, after in similarities)} of {len(similarities)}",
            "faces at the edge": sum(bool(swap.at_edge) for swap in done.values()),
        }
        sheet = contact_sheet_metadata(work.store, "scenes, each before and after", files)
        report_partition(context, batch, metadata | sheet)


def _rows_of_batch(rows: Sequence[EditTaskRow], batch: str) -> list[EditTaskRow]:
    """Return the rows of a label partition, whose keys follow the plan's id in those of the rows."""
    return [row for row in rows if row.batch.partition("_")[2] == batch]


@dg.asset(kinds={"diffusers", "table"}, deps=[face_swaps], **_GPU)
def inpaint_candidates(context: dg.AssetExecutionContext, config: InpaintConfig, work: dg.ResourceParam[Work]) -> None:
    """Every refinement of each swapped face by EACPS, and the unrefined swap, with their scores."""
    plan = config.plan(work.settings)
    tasks = _read_tasks(work.database, context.partition_keys)
    rows = refine.plan_tasks(work, plan, tasks)
    steps_before = sum(candidate.nfe for candidate in refine.candidates_with_swap(work, rows))
    with work.slot, progress_bar("refining", sum(plan.nfe) * len(rows) - steps_before, " steps") as bar:
        refine.refine_tasks(work, plan, rows, bar.update)
    candidates = refine.candidates_with_swap(work, rows)
    for batch in context.partition_keys:
        ids = [row.id for row in _rows_of_batch(rows, batch)]
        own = [candidate for candidate in candidates if candidate.task in ids]
        metadata = {
            "tasks": len(ids),
            "candidates": len(own),
            "denoising steps": sum(candidate.nfe for candidate in own),
            "with missing scores": sum(any(c.scores.get(name) is None for name in metrics.MODEL_METRICS) for c in own),
            "failed": sum(candidate.error is not None for candidate in own),
        }
        files = [candidate for candidate in own if candidate.task in ids[:2]]
        sheet = contact_sheet_metadata(work.store, "candidates of two tasks", files)
        report_partition(context, batch, metadata | sheet)


@dg.asset(kinds={"vlm", "table"}, deps=[inpaint_candidates], **_GPU)
def inpaint_judgements(context: dg.AssetExecutionContext, config: InpaintConfig, work: dg.ResourceParam[Work]) -> None:
    """Scores of each candidate by the judge in FLEXY_JUDGE; unanswered ones are asked again by the next run."""
    plan = config.plan(work.settings)
    rows = refine.plan_tasks(work, plan, _read_tasks(work.database, context.partition_keys))
    with work.slot:
        judge = metrics.judge_candidates(work, rows, refine.candidates_with_swap(work, rows))
    candidates = refine.candidates_with_swap(work, rows)
    judged = metrics.judged_candidates(work, rows, judge) if judge else set()
    for batch in context.partition_keys:
        ids = {row.id for row in _rows_of_batch(rows, batch)}
        finished = [candidate for candidate in candidates if candidate.task in ids and candidate.finished]
        answered = [candidate.id in judged for candidate in finished]
        counts = {"answered": sum(answered), "unanswered": len(answered) - sum(answered)}
        report_partition(context, batch, {"judge": judge or "none"} | counts)


@dg.asset(kinds={"table"}, deps=[inpaint_judgements], **_GPU)
def inpaint_selections(context: dg.AssetExecutionContext, config: InpaintConfig, work: dg.ResourceParam[Work]) -> None:
    """The winner of each task by the judge's scores, or without a judge by those of models."""
    from resources.judges import make_judge

    plan = config.plan(work.settings)
    tasks = _read_tasks(work.database, context.partition_keys)
    rows = refine.plan_tasks(work, plan, tasks)
    judge = make_judge(work.settings, work.slot)
    winners = refine.select_best(work, plan, rows, judge.fingerprint if judge else None)
    for batch in context.partition_keys:
        own = _rows_of_batch(rows, batch)
        pairs = [(row, winners[row.id]) for row in own if row.id in winners]
        stages = Counter(winner.stage for _, winner in pairs)
        metadata = {
            "tasks": sum(task.batch == batch for task in tasks),
            "selected": len(pairs),
            "by stage": dg.MetadataValue.json(dict(stages)),
            "selected by": f"{plan.judged if judge else plan.potential} ({judge.fingerprint if judge else 'models'})",
            "without a potential": dg.MetadataValue.json([row.name for row in own if row.id not in winners]),
        }
        files = [file for pair in pairs[:MAX_SHEET_TASKS] for file in pair]
        sheet = contact_sheet_metadata(work.store, "swaps, each before its winner", files)
        report_partition(context, batch, metadata | sheet)


class PredictionConfig(dg.Config):
    """What predictions are called, and whether they are sent."""

    model_version: str = Field(default="", description="The predictions' model version, by default flexy/EDITOR.")
    send: bool = Field(default=True, description="Send them to Label Studio; else only the file is written.")


@dg.asset(kinds={"json"}, deps=[inpaint_selections], **_BATCHED)
def label_predictions(
    context: dg.AssetExecutionContext, config: PredictionConfig, work: dg.ResourceParam[Work]
) -> None:
    """The winners, sent to Label Studio as predictions, and a file that can be imported there instead."""
    migrate(work.database)
    counts: dict[str, Counter[str]] = {}
    # Two concurrent pushes would both find no prediction; the second one reads the selection after the first.
    with exclusive_lock(work.database, "predictions"):
        with work.database.begin(reading=True) as connection:
            selected = labels.selected_images(connection, context.partition_keys)
        try:
            if config.send:
                studio = LabelStudioClient.from_settings(work.settings)
                pusher = push_predictions.PredictionPusher(work.database, work.store, studio)
                with progress_bar("predictions", len(selected), " tasks") as bar:
                    counts = pusher.run(selected, config.model_version, bar.update)
        finally:
            file = _write_predictions(work.database, work.settings, config.model_version)
    work.results["label_predictions"] = counts
    for batch in context.partition_keys:
        outcomes = {name: counts.get(batch, Counter())[name] for name in push_predictions.OUTCOMES}
        winners = sum(image.task.batch == batch for image in selected)
        report_partition(context, batch, {"selected": winners, **outcomes, "file": dg.MetadataValue.path(file)})


def _write_predictions(database: Database, settings: Settings, model_version: str) -> Path:
    """Write all winners in Label Studio's import format; return the file."""
    with database.begin(reading=True) as connection:
        selected, sent = labels.selected_images(connection), labels.sent_predictions(connection)
    document = push_predictions.prediction_document(selected, sent, model_version)
    path = settings.tables / "label_predictions.json"
    write_atomically(path, json.dumps(document, indent=1, ensure_ascii=False).encode())
    return path


_AGREEMENT: Any = _GROUP | {"metadata": columns.column_schema_metadata(review.AGREEMENT_SCHEMA)}


@dg.asset(kinds={"scipy", "parquet"}, deps=[label_predictions], **_AGREEMENT)
def label_review(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> pl.DataFrame:
    """How well the potential and each score agree with the people who reviewed the sent images."""
    migrate(work.database)
    notes = _refresh_verdicts(work.database, work.settings)
    with work.database.begin(reading=True) as connection:
        verdicts = review.verdict_counts(task.verdicts for task in labels.label_tasks_of(connection))
        images = [
            review.ReviewedTask(task.name, sent.sent_at, scores, task.verdicts)
            for sent, task, scores in labels.reviewed_tasks(connection)
            if sent.sent_at
        ]
    if not images:
        notes.append("nothing was sent for review yet: run `flexy inpaint push`")
    summary = review.ReviewSummary(review.count_votes(images), notes)
    work.results["label_review"] = summary
    agreement = review.score_agreement(images, summary.votes)
    verdict_rows = [{"verdict": name, "n": n} for name, n in verdicts.items()]
    context.add_output_metadata(
        {
            "agreement": dg.MetadataValue.md(format_markdown_table(agreement.to_dicts())),
            "definitions": f"positive: {review.GOOD_VERDICTS!r} alone; thresholds by Youden's J on the same images, so"
            " the counts are optimistic",
            "images reviewed": summary.reviewed,
            "verdicts": dg.MetadataValue.md(format_markdown_table(verdict_rows)),
            "excluded": summary.excluded,
            "notes": summary.remarks,
        }
    )
    return agreement


def _refresh_verdicts(database: Database, settings: Settings) -> list[str]:
    """Update verdicts from the server, where there is one; return notes on those that could not be updated."""
    with database.begin(reading=True) as connection:
        projects = sorted({task.project for task in labels.label_tasks_of(connection) if task.project is not None})
    if not (settings.label_studio_url and settings.label_studio_key):
        return ["no Label Studio is configured: verdicts are those of the last import"]
    studio, notes = LabelStudioClient.from_settings(settings), []
    for project in projects:
        try:
            import_tasks.refresh_tasks(database, import_tasks.source_from_project(studio, project))
        except LabelStudioError as error:
            notes.append(f"verdicts of project {project} are those of the last import: {error}")
    return notes
