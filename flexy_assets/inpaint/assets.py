"""The lineage of labels. Each asset asks, calls and records; the thinking stands in the modules beside it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import dagster as dg
import polars as pl

from flexy_assets.edits.search.eacps import EacpsParameters
from flexy_assets.inpaint import import_tasks, metrics, push_predictions, refine, review
from flexy_assets.inpaint.import_tasks import TaskImporter, TaskSource
from flexy_assets.inpaint.plan import SWAP_NAME, InpaintPlan
from flexy_assets.partitions import label_batches, report_partition
from flexy_assets.reporting import columns
from flexy_assets.reporting.progress import progress_bar
from flexy_assets.reporting.text_tables import format_markdown_table
from flexy_assets.reporting.thumbnails import make_contact_sheet, markdown_image
from flexy_assets.scoring.work import Work
from flexy_assets.storage import labels
from flexy_assets.storage.edits import EditTaskRow
from flexy_assets.storage.locks import exclusive_lock
from flexy_assets.storage.migrate import migrate
from resources.database import Database
from resources.errors import BadInputError
from resources.files import write_atomically
from resources.images import ImageStore
from resources.label_studio.client import LabelStudioClient, LabelStudioError
from resources.models import registry
from resources.settings import Settings

_BATCHED: dict[str, Any] = {"partitions_def": label_batches, "backfill_policy": dg.BackfillPolicy.single_run()}
_GPU: dict[str, Any] = {"pool": "gpu"}
SHOWN_COLUMNS = 6
"""Tasks of a batch whose pictures are shown."""

MAX_SHOWN = 24
"""Tasks on the contact sheet of an import."""


class LabelConfig(dg.Config):
    """Which tasks to import: of an `export` (a file), or of a `project` on the Label Studio server.

    Without either it is the project named by FLEXY_LABEL_STUDIO_PROJECT. `task_ids` are the tasks' names (data.id);
    all by default. New tasks come in batches of `batch_size`.
    """

    export: str = ""
    project: int | None = None
    task_ids: list[str] = []
    batch_size: int = 50

    def check(self, settings: Settings) -> None:
        """Raises `BadInputError` where that is said in two ways or none, or names a server that is not known."""
        if not 1 <= self.batch_size <= 1000:
            raise BadInputError(f"a batch of {self.batch_size} tasks is out of bounds: use 1 to 1000")
        if self.export and self.project is not None:
            raise BadInputError("give either an export (a file) or a project, not both")
        if not self.export:
            if self.project is None and settings.label_studio_project is None:
                raise BadInputError("nothing to import: give an export (a file), or a project on your Label Studio")
            LabelStudioClient.from_settings(settings)

    def read(self, settings: Settings) -> TaskSource:
        """The tasks. Raises `FlexyError` where they cannot be read."""
        self.check(settings)
        if self.export:
            return import_tasks.source_from_export(Path(self.export)).only(self.task_ids, self.export)
        project = settings.label_studio_project if self.project is None else self.project
        studio = LabelStudioClient.from_settings(settings)
        return import_tasks.source_from_project(studio, int(project or 0)).only(self.task_ids, f"project {project}")


@dg.asset(
    group_name="labels", kinds={"polars", "parquet"}, metadata=columns.column_schema_metadata(labels.LABEL_TASKS_SCHEMA)
)
def label_tasks(context: dg.AssetExecutionContext, config: LabelConfig, work: dg.ResourceParam[Work]) -> pl.DataFrame:
    """Scene, mask, character and human verdicts of each Label Studio task. Materialising it imports tasks."""
    migrate(work.database)
    source = config.read(work.settings)
    importer = TaskImporter(work.database, work.store, work.settings, source)
    imported = importer.reserve(config.batch_size)
    context.instance.add_dynamic_partitions("label_batches", imported.batches)
    with progress_bar("tasks imported", len(source.tasks), " tasks") as bar:
        imported = importer.fetch(imported, bar.update)
    context.add_output_metadata(
        {
            "tasks": sum(task.error is None for task in imported.tasks),
            "new": imported.new,
            "changed": imported.changed,
            "pictures fetched now": imported.fetched,
            "left out": dg.MetadataValue.json(import_tasks.skipped_reasons(source, imported)),
            "notes": dg.MetadataValue.json(import_tasks.import_notes(source, imported)),
            "verdicts": dg.MetadataValue.json(review.verdict_counts(task.verdicts for task in imported.tasks)),
            "batches": dg.MetadataValue.json(imported.batches),
        }
    )
    shown = [task for task in imported.tasks if not task.error][:MAX_SHOWN]
    files = [(path, None) for task in shown for path in (task.image_path, task.mask_path, task.character_path) if path]
    found = [picture for picture in work.store.read_many(files) if not isinstance(picture, Exception)]
    if found:
        picture = dg.MetadataValue.md(
            markdown_image("scenes, masks, characters", make_contact_sheet(found, columns=12))
        )
        context.add_output_metadata({"scene, mask and character of each": picture})
    with work.database.begin(reading=True) as connection:
        return labels.label_tasks_table(labels.label_tasks_of(connection))


class InpaintConfig(dg.Config):
    """How swapped faces are refined inside their masks; the same settings name the same run: give all steps the same.

    `budget` is in full denoises of `steps`, 0 leaves faces as they were swapped; `widen` lets the editor change
    what lies around the mask too, by that share of its longer side. Candidates are chosen by
    alpha·consistency + beta·quality + gamma·identity; the rest is how EACPS spends its budget (`eacps.Parameters`).
    """

    editor: str = ""
    steps: int = 0
    guidance: float = 0.0
    prompt: str = InpaintPlan.prompt
    negative_prompt: str | None = None
    budget: int = InpaintPlan.budget
    widen: float = InpaintPlan.widen
    seed: int = 0
    alpha: float = InpaintPlan.alpha
    beta: float = InpaintPlan.beta
    gamma: float = InpaintPlan.gamma
    scouts: int = EacpsParameters.scouts
    local_share: float = EacpsParameters.local_share
    m_global: int = EacpsParameters.m_global
    k_local: int = EacpsParameters.k_local
    cross: float = EacpsParameters.cross
    t: float = EacpsParameters.t
    strength: float = EacpsParameters.strength

    def plan(self, settings: Settings) -> InpaintPlan:
        """The settings, checked. Raises `BadInputError` naming the one that cannot be."""
        editor = self.editor or registry.find_face_editor(settings)
        if editor is None:
            return InpaintPlan(
                SWAP_NAME, steps=1, guidance=1.0, budget=0, alpha=self.alpha, beta=self.beta, gamma=self.gamma
            )
        entry = registry.find_model(editor, "editor", settings)
        return InpaintPlan(
            editor=entry.name,
            steps=self.steps or entry.steps,
            guidance=self.guidance or entry.guidance,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            budget=self.budget,
            widen=self.widen,
            seed=self.seed,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            eacps=EacpsParameters.of(self),
        )


def _tasks(database: Database, batches: Sequence[str]) -> list[labels.LabelTaskRow]:
    migrate(database)
    with database.begin(reading=True) as connection:
        return labels.label_tasks_of(connection, batches)


@dg.asset(group_name="labels", kinds={"onnx", "table"}, deps=[label_tasks], **_BATCHED, **_GPU)
def face_swaps(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> None:
    """The character's face in the place of the one at the mask, and how alike the two were before and after."""
    tasks = _tasks(work.database, context.partition_keys)
    with work.slot, progress_bar("faces swapped", len(tasks), " tasks") as bar:
        swapped = refine.swap_faces(work, tasks, bar.update)
    for batch in context.partition_keys:
        mine = [task for task in tasks if task.batch == batch]
        known = {task: swapped[task.id] for task in mine if task.id in swapped}
        done = {task: swap for task, swap in known.items() if swap.image_path}
        both = [(s.identity_before, s.identity_after) for s in done.values()]
        left = {task.name: known[task].reason if task in known else task.error for task in mine if task not in done}
        shown = [picture for task, swap in list(done.items())[:SHOWN_COLUMNS] for picture in (task, swap)]
        metadata = {
            "swapped": len(done),
            "left as they were": dg.MetadataValue.json(left),
            "identity rose": f"{sum((after or -1) > (before or -1) for before, after in both)} of {len(both)}",
            "faces at the edge": sum(bool(swap.at_edge) for swap in done.values()),
        }
        report_partition(context, batch, metadata | _sheet(work.store, "scenes, each before and after", shown))


class _ImageFile(Protocol):
    @property
    def image_path(self) -> str | None: ...
    @property
    def image_sha256(self) -> str | None: ...


def _sheet(images: ImageStore, title: str, shown: Sequence[_ImageFile]) -> dict[str, Any]:
    """Pictures side by side, for the UI; nothing where none can be read."""
    read = images.read_many([(each.image_path or "", each.image_sha256) for each in shown])
    found = [picture for picture in read if not isinstance(picture, Exception)]
    if not found:
        return {}
    return {title: dg.MetadataValue.md(markdown_image(title, make_contact_sheet(found)))}


def _of(rows: Sequence[EditTaskRow], batch: str) -> list[EditTaskRow]:
    """The rows of a batch of labels: the plan's own batch begins with the plan."""
    return [row for row in rows if row.batch.partition("_")[2] == batch]


@dg.asset(group_name="labels", kinds={"diffusers", "table"}, deps=[face_swaps], **_BATCHED, **_GPU)
def inpaint_candidates(context: dg.AssetExecutionContext, config: InpaintConfig, work: dg.ResourceParam[Work]) -> None:
    """Every refinement of each swapped face by EACPS, and the swap itself, with identity, quality and consistency."""
    plan = config.plan(work.settings)
    tasks = _tasks(work.database, context.partition_keys)
    rows = refine.plan_tasks(work, plan, tasks)
    before = sum(c.nfe for c in refine.candidates_with_swap(work, rows))
    with work.slot, progress_bar("refining", sum(plan.nfe) * len(rows) - before, " steps") as bar:
        refine.refine_tasks(work, plan, rows, bar.update)
    made = refine.candidates_with_swap(work, rows)
    for batch in context.partition_keys:
        ids = [row.id for row in _of(rows, batch)]
        mine = [candidate for candidate in made if candidate.task in ids]
        metadata = {
            "tasks": len(ids),
            "candidates": len(mine),
            "denoising steps (NFE)": sum(c.nfe for c in mine),
            "not measured": sum(any(c.scores.get(metric) is None for metric in metrics.MODEL_METRICS) for c in mine),
            "failed": sum(c.error is not None for c in mine),
        }
        shown = [candidate for candidate in mine if candidate.task in ids[:2]]
        report_partition(context, batch, metadata | _sheet(work.store, "candidates of two tasks", shown))


@dg.asset(group_name="labels", kinds={"vlm", "table"}, deps=[inpaint_candidates], **_BATCHED, **_GPU)
def inpaint_judgements(context: dg.AssetExecutionContext, config: InpaintConfig, work: dg.ResourceParam[Work]) -> None:
    """What the judge that FLEXY_JUDGE names says of each candidate; what it leaves unanswered is asked again."""
    plan = config.plan(work.settings)
    rows = refine.plan_tasks(work, plan, _tasks(work.database, context.partition_keys))
    with work.slot:
        judge = metrics.judge_candidates(work, rows, refine.candidates_with_swap(work, rows))
    made = refine.candidates_with_swap(work, rows)
    for batch in context.partition_keys:
        mine = {row.id for row in _of(rows, batch)}
        finished = [c for c in made if c.task in mine and c.until == c.path]
        answered = [c.scores.get(metrics.JUDGE_METRICS[0]) is not None for c in finished]
        report_partition(
            context,
            batch,
            {"judge": judge or "none", "answered": sum(answered), "unanswered": len(answered) - sum(answered)},
        )


@dg.asset(group_name="labels", kinds={"table"}, deps=[inpaint_judgements], **_BATCHED, **_GPU)
def inpaint_selections(context: dg.AssetExecutionContext, config: InpaintConfig, work: dg.ResourceParam[Work]) -> None:
    """The best picture of each task by the judge's marks, or without a judge by what was measured."""
    from resources.judges import make_judge

    plan = config.plan(work.settings)
    tasks = _tasks(work.database, context.partition_keys)
    rows = refine.plan_tasks(work, plan, tasks)
    asked = make_judge(work.settings, work.slot)
    chosen = refine.select_best(work, plan, rows, asked.fingerprint if asked else None)
    for batch in context.partition_keys:
        mine = _of(rows, batch)
        stages = Counter(chosen[row.id].stage for row in mine if row.id in chosen)
        metadata = {
            "tasks": sum(task.batch == batch for task in tasks),
            "selected": sum(stages.values()),
            "by stage": dg.MetadataValue.json(dict(stages)),
            "chosen by": f"{plan.judged if asked else plan.potential} ({asked.fingerprint if asked else 'measured'})",
            "without a potential": dg.MetadataValue.json([row.name for row in mine if row.id not in chosen]),
        }
        pairs = [(row, chosen[row.id]) for row in mine if row.id in chosen]
        shown = [picture for pair in pairs[:SHOWN_COLUMNS] for picture in pair]
        report_partition(context, batch, metadata | _sheet(work.store, "swapped, each before what was chosen", shown))


class PredictionConfig(dg.Config):
    """As which `model_version` predictions are sent (`flexy/<editor>` by default), and whether they are sent at all.

    Without `send` only the file is written.
    """

    model_version: str = ""
    send: bool = True


@dg.asset(group_name="labels", kinds={"json"}, deps=[inpaint_selections], **_BATCHED)
def label_predictions(
    context: dg.AssetExecutionContext, config: PredictionConfig, work: dg.ResourceParam[Work]
) -> None:
    """What was chosen for each task, sent back to Label Studio, and a file that can be imported there instead."""
    migrate(work.database)
    counts: dict[str, Counter[str]] = {}
    # Two who look at once would both find nothing there; and who comes second sends what is chosen by then.
    with exclusive_lock(work.database, "predictions"):
        with work.database.begin(reading=True) as connection:
            chosen = labels.selected_images(connection, context.partition_keys)
        try:
            if config.send:
                pusher = push_predictions.PredictionPusher(
                    work.database, work.store, LabelStudioClient.from_settings(work.settings)
                )
                with progress_bar("predictions", len(chosen), " tasks") as bar:
                    counts = pusher.run(chosen, config.model_version, bar.update)
        finally:
            file = _write(work.database, work.settings, config.model_version)
    for batch in context.partition_keys:
        mine = counts.get(batch, Counter())
        outcomes = {name: mine[name] for name in ("created", "replaced", "unchanged", "unsent")}
        selected = sum(each.task.batch == batch for each in chosen)
        report_partition(context, batch, {"selected": selected, **outcomes, "file": dg.MetadataValue.path(file)})


def _write(database: Database, settings: Settings, model_version: str) -> Path:
    """Everything that was chosen, in the form in which Label Studio imports predictions."""
    with database.begin(reading=True) as connection:
        found = push_predictions.prediction_document(
            labels.selected_images(connection), labels.sent_predictions(connection), model_version
        )
    path = settings.tables / "label_predictions.json"
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False).encode())
    return path


@dg.asset(
    group_name="labels",
    kinds={"scipy", "parquet"},
    deps=[label_predictions],
    metadata=columns.column_schema_metadata(review.AGREEMENT_SCHEMA),
)
def label_review(context: dg.AssetExecutionContext, work: dg.ResourceParam[Work]) -> pl.DataFrame:
    """How well the potential and each score agree with the people who reviewed what was sent."""
    migrate(work.database)
    notes = _refresh_verdicts(work.database, work.settings)
    with work.database.begin(reading=True) as connection:
        tasks = labels.label_tasks_of(connection)
        reviewed = labels.reviewed_tasks(connection)
    pictures = [
        review.ReviewedTask(task.name, sent.sent_at, scores, task.verdicts)
        for sent, task, scores in reviewed
        if sent.sent_at
    ]
    if not pictures:
        notes.append("nothing was sent for review yet: flexy labels push")
    voted = review.count_votes(pictures)
    found = review.score_agreement(pictures, voted)
    good = sum(voted.good.values())
    verdicts = [{"verdict": name, "n": n} for name, n in review.verdict_counts(task.verdicts for task in tasks).items()]
    context.add_output_metadata(
        {
            "agreement": dg.MetadataValue.md(format_markdown_table(found.to_dicts())),
            "read as": f"positive is {review.GOOD_VERDICTS!r} alone; cut-offs by Youden's J on these images"
            " themselves, so the counts beside them flatter",
            "pictures reviewed": f"{len(voted.good)}, of which {good} good",
            "verdicts": dg.MetadataValue.md(format_markdown_table(verdicts)),
            "left out": ", ".join(f"{n} {reason}" for reason, n in voted.left_out.items()) or "nothing",
            "notes": "; ".join(notes) or "nothing",
        }
    )
    return found


def _refresh_verdicts(database: Database, settings: Settings) -> list[str]:
    """Bring verdicts up to date from the server, where there is one; what could not be, in words."""
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
