"""`flexy inpaint`: imports tasks, runs the assets on their partitions, and pushes predictions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from flexy_assets.execution import contiguous_ranges, dagster_instance, run_assets, run_job, step_failures
from flexy_assets.inpaint import assets
from flexy_assets.inpaint.import_tasks import ImportSummary
from flexy_assets.inpaint.push_predictions import OUTCOMES
from flexy_assets.inpaint.review import ReviewSummary
from flexy_assets.reporting.formatting import format_count
from flexy_assets.reporting.text_tables import format_text_table
from flexy_assets.storage import labels
from flexy_assets.storage.labels import LabelTaskRow
from flexy_assets.storage.migrate import migrate
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.judges import make_judge
from resources.label_studio.client import LabelStudioClient
from resources.settings import Settings

LINEAGE = (assets.face_swaps, assets.inpaint_candidates, assets.inpaint_judgements, assets.inpaint_selections)
"""The assets that `flexy inpaint run` materializes, in order."""

Definitions = Callable[[], Any]


def import_label_tasks(options: Mapping[str, Any], definitions: Definitions, database: Database) -> dict[str, Any]:
    """Import the tasks that `options` (`assets.LabelConfig`) describe; return the command's document."""
    settings = Settings.read()
    config = assets.LabelConfig(**options)
    # Checked before a Dagster run starts: an unreadable source leaves no trace.
    config.check(settings)
    if config.export:
        config.read(settings)
    with database.begin(reading=True):
        pass
    code = definitions()
    with dagster_instance(settings) as instance:
        run_assets(instance, code, [assets.label_tasks], config={"label_tasks": options})
    summary: ImportSummary = code.resources["work"].results["label_tasks"]
    result = summary.result
    skipped = [_format_skipped(entry) for entry in summary.skipped]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in summary.verdicts.items()) or "none"
    counts = f"{format_count(result.usable, 'usable task')}: {result.new} new, {result.changed} changed;"
    lines = [f"{counts} {format_count(result.fetched, 'image')} fetched", f"verdicts  {verdicts}"]
    lines += [f"skipped   {line}" for line in skipped] + [f"note      {note}" for note in summary.notes]
    return {
        **{"tasks": result.usable, "new": result.new, "changed": result.changed},
        **{name: getattr(summary, name) for name in ("skipped", "verdicts", "notes")},
        **{"pictures_fetched": result.fetched, "batches": result.batches, "text": "\n".join(lines)},
        "failed": f"{len(skipped)} skipped: {'; '.join(skipped[:5])}" if skipped else "",
    }


def _format_skipped(skipped: Mapping[str, Any]) -> str:
    if skipped["id"] is not None:
        return f"task {skipped['id']}: {skipped['reason']}"
    return f"entry {skipped['entry']}: {skipped['reason']}" if skipped["entry"] else str(skipped["reason"])


def run_inpainting(
    task_ids: Sequence[str], options: Mapping[str, Any], definitions: Definitions, database: Database
) -> dict[str, Any]:
    """Swap, refine, judge and select for these tasks (by name), or for all usable ones, with `assets.InpaintConfig`."""
    settings = Settings.read()
    config = {asset.op.name: dict(options) for asset in LINEAGE[1:]}
    plan = assets.InpaintConfig(**options).plan(settings)
    judge = make_judge(settings)
    potential = plan.judged if judge else plan.potential
    migrate(database)
    tasks = _select_tasks(database, task_ids)
    batches = sorted({task.batch for task in tasks if not task.error})
    if not batches:
        raise BadInputError(f"no usable task: task {tasks[0].name}: {tasks[0].error}")
    with dagster_instance(settings) as instance:
        if task_ids:
            op_config = {"ops": {"inpaint": {"config": {"tasks": [*task_ids], **options}}}}
            if errors := step_failures(run_job(instance, definitions(), "inpaint_tasks", op_config)):
                raise FlexyError("; ".join(errors))
        else:
            for batch_range in _register_batches(instance, batches):
                run_assets(instance, definitions(), LINEAGE, batches=batch_range, config=config)
    with database.begin(reading=True) as connection:
        winners = {image.task.id: image for image in labels.selected_images(connection, batches)}
        failures = labels.judgement_failures(connection, plan.run_id, potential.weights)
        answered = judge and labels.is_judged(connection, plan.run_id, judge.fingerprint)
        errors_by_task = {task: f"no candidate could be scored: {error}" for task, _, error in failures}
        errors_by_task |= labels.swap_errors(connection, tasks)
    ids = {task.id for task in tasks}
    unanswered = {candidate for task, candidate, _ in failures if task in ids} if judge else set()
    left = {
        task.name: task.error or errors_by_task.get(task.id) or "no candidate could be scored"
        for task in tasks
        if task.id not in winners
    }
    selected = [
        {"id": task.name, "image_path": image.image_path, "potential": image.scores.get("potential")}
        for task in tasks
        if (image := winners.get(task.id))
    ]
    unusable = [f"task {task.name}: {task.error}" for task in tasks if task.error]
    lines = [f"{format_count(len(selected), 'task')} with a selected image, {len(left)} unchanged"]
    lines += map(": ".join, left.items())
    lines += [f"{format_count(len(unanswered), 'candidate')} not judged: run again"] if unanswered else []
    failed = [f"{format_count(len(unusable), 'task')} skipped: {'; '.join(unusable[:5])}"] if unusable else []
    if unanswered and not answered:
        failed.append(f"the judge answered for no candidate: {failures[-1][2]}: selections stay as they are")
    return {
        **{"tasks": len(tasks), "batches": batches, "selected": selected, "left": left},
        **{"unanswered": len(unanswered), "text": "\n".join(lines)},
        "failed": "; ".join(failed),
    }


def push_to_label_studio(options: Mapping[str, Any], definitions: Definitions, database: Database) -> dict[str, Any]:
    """Push the winners to Label Studio as predictions; `options` are those of `assets.PredictionConfig`."""
    settings = Settings.read()
    migrate(database)
    with database.begin(reading=True) as connection:
        selected = labels.selected_images(connection)
    if not selected:
        raise BadInputError("nothing is selected yet: run `flexy inpaint import`, then `flexy inpaint run`")
    if options["send"]:
        LabelStudioClient.from_settings(settings)
    counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
    code = definitions()
    with dagster_instance(settings) as instance:
        for batch_range in _register_batches(instance, sorted({image.task.batch for image in selected})):
            config = {"label_predictions": options}
            run_assets(instance, code, [assets.label_predictions], batches=batch_range, config=config)
            by_batch: Mapping[str, Counter[str]] = code.resources["work"].results["label_predictions"]
            counts.update(sum(by_batch.values(), Counter()))
    with database.begin(reading=True) as connection:
        errors = [sent.error for sent in labels.sent_predictions(connection) if sent.error]
    file = settings.tables / "label_predictions.json"
    summary = ", ".join(f"{count} {name}" for name, count in counts.items()) if options["send"] else "nothing sent"
    failed = (
        f"{format_count(counts['unsent'], 'prediction')} could not be sent: {errors[-1]}"
        if counts["unsent"] and errors
        else ""
    )
    return {**counts, "file": str(file), "text": f"{summary}\nfile  {file}", "failed": failed}


def review_agreement(definitions: Definitions, database: Database) -> dict[str, Any]:
    """Return how well scores agree with the current verdicts on the images that were sent."""
    with database.begin(reading=True):
        pass
    code = definitions()
    with dagster_instance(Settings.read()) as instance:
        result = run_assets(instance, code, [assets.label_review])
        agreement: pl.DataFrame = result.output_for_node("label_review")
    summary: ReviewSummary = code.resources["work"].results["label_review"]
    rows, counts = agreement.to_dicts(), (summary.reviewed, summary.excluded, summary.remarks)
    lines = [f"{name:15}  {text}" for name, text in zip(("images reviewed", "excluded", "notes"), counts, strict=True)]
    lines += ["", format_text_table(rows)] if rows else []
    document = dict(zip(("reviewed", "left_out", "notes"), counts, strict=True))
    return document | {"agreement": rows, "text": "\n".join(lines)}


def _select_tasks(database: Database, names: Sequence[str]) -> list[LabelTaskRow]:
    with database.begin(reading=True) as connection:
        tasks = labels.label_tasks_of(connection)
    if not tasks:
        raise BadInputError("no tasks yet: run `flexy inpaint import`")
    if unknown := [name for name in dict.fromkeys(names) if name not in {task.name for task in tasks}]:
        raise BadInputError(f"no task {', '.join(unknown)[:200]}: import it, or name tasks by their data.id")
    return [task for task in tasks if not names or task.name in names]


def _register_batches(instance: Any, batches: Sequence[str]) -> list[tuple[str, str]]:
    """Add the partitions to this instance (another one may have imported them); return them as ranges."""
    instance.add_dynamic_partitions("label_batches", list(batches))
    return contiguous_ranges(batches, instance.get_dynamic_partitions("label_batches"))
