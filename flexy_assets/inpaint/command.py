"""What `flexy labels` does: tasks in, the lineage over their batches, predictions out; on the user's instance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from flexy_assets.execution import contiguous_ranges, dagster_instance, run_assets, run_job, step_failures
from flexy_assets.inpaint import assets
from flexy_assets.reporting.formatting import format_count
from flexy_assets.reporting.text_tables import format_text_table
from flexy_assets.storage import labels
from flexy_assets.storage.labels import LabelTaskRow
from flexy_assets.storage.migrate import migrate
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.label_studio.client import LabelStudioClient
from resources.settings import Settings

LINEAGE = (assets.face_swaps, assets.inpaint_candidates, assets.inpaint_judgements, assets.inpaint_selections)
"""What `flexy labels run` makes of a batch, in order."""

Definitions = Callable[[], Any]


def import_label_tasks(options: Mapping[str, Any], definitions: Definitions, database: Database) -> dict[str, Any]:
    """Bring the tasks that `options` (`assets.LabelConfig`) name into the table."""
    settings = Settings.read()
    config = assets.LabelConfig(**options)
    # Checked before a run is begun: what cannot be read should leave no trace.
    config.check(settings)
    if config.export:
        config.read(settings)
    with database.begin(reading=True):
        pass
    with dagster_instance(settings) as instance:
        result = run_assets(instance, definitions(), [assets.label_tasks], config={"label_tasks": options})
    metadata: Any = result.asset_materializations_for_node("label_tasks")[0].metadata
    skipped, notes, verdicts = (metadata[name].value for name in ("left out", "notes", "verdicts"))
    counts = {name: metadata[name].value for name in ("tasks", "new", "changed")}
    fetched = metadata["pictures fetched now"].value
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "none"
    lines = [
        f"{counts['tasks']} tasks can be worked on: {counts['new']} new, {counts['changed']} changed;"
        f" {fetched} pictures fetched now",
        f"verdicts  {said}",
        *(f"left out  {_of(one)}" for one in skipped),
        *(f"note      {note}" for note in notes),
    ]
    failed = f"{len(skipped)} left out: {'; '.join(map(_of, skipped[:5]))}" if skipped else ""
    return {
        **counts,
        "skipped": skipped,
        "verdicts": verdicts,
        "notes": notes,
        "pictures_fetched": fetched,
        "batches": metadata["batches"].value,
        "text": "\n".join(lines),
        "failed": failed,
    }


def _of(skipped: Mapping[str, Any]) -> str:
    if skipped["id"] is not None:
        return f"task {skipped['id']}: {skipped['reason']}"
    return f"entry {skipped['entry']}: {skipped['reason']}" if skipped["entry"] else skipped["reason"]


def run_inpainting(
    task_ids: Sequence[str], options: Mapping[str, Any], definitions: Definitions, database: Database
) -> dict[str, Any]:
    """Swap, refine, judge and choose in these tasks (their names), or in all that can be worked on, batch by batch.

    `options` are `assets.InpaintConfig`'s.
    """
    settings = Settings.read()
    configured = ("inpaint_candidates", "inpaint_judgements", "inpaint_selections")
    names = [asset.op.name for asset in LINEAGE]
    config = {name: dict(options) for name in names if name in configured}
    plan = assets.InpaintConfig(**options).plan(settings)
    judged = settings.judge != "none"
    potential = plan.judged if judged else plan.potential
    migrate(database)
    tasks = _selected_tasks(database, task_ids)
    batches = sorted({task.batch for task in tasks if not task.error})
    if not batches:
        raise BadInputError(f"no task can be worked on: task {tasks[0].name}: {tasks[0].error}")
    with dagster_instance(settings) as instance:
        if task_ids:
            named = {"ops": {"inpaint": {"config": {"tasks": [*task_ids], **options}}}}
            if failed := step_failures(run_job(instance, definitions(), "inpaint_tasks", named)):
                raise FlexyError("; ".join(failed))
        else:
            _register(instance, batches)
            for stretch in contiguous_ranges(batches, instance.get_dynamic_partitions("label_batches")):
                run_assets(instance, definitions(), LINEAGE, batches=stretch, config=config)
    with database.begin(reading=True) as connection:
        selected = {each.task.id: each for each in labels.selected_images(connection, batches)}
        unscored = labels.judgement_failures(connection, plan.run_id, potential.weights)
        reasons = {each.task: f"no candidate could be scored: {each.reason}" for each in unscored}
        reasons |= labels.swap_errors(connection, tasks)
    mine = {task.id for task in tasks}
    unanswered = {each.candidate for each in unscored if each.task in mine} if judged else set()
    left = {
        task.name: task.error or reasons.get(task.id) or "no candidate could be scored"
        for task in tasks
        if task.id not in selected
    }
    chosen = [selected[task.id] for task in tasks if task.id in selected]
    unworked = [f"task {task.name}: {task.error}" for task in tasks if task.error]
    lines = [
        f"{format_count(len(chosen), 'task')} chosen, {len(left)} left as they were",
        *map(": ".join, left.items()),
    ]
    if unanswered:
        lines.append(f"the judge left {format_count(len(unanswered), 'candidate')} unanswered: run again")
    return {
        "tasks": len(tasks),
        "batches": batches,
        "selected": [
            {"id": each.task.name, "image_path": each.image_path, "potential": each.scores.get("potential")}
            for each in chosen
        ],
        "left": left,
        "unanswered": len(unanswered),
        "text": "\n".join(lines),
        "failed": f"{format_count(len(unworked), 'task')} left out: {'; '.join(unworked[:5])}" if unworked else "",
    }


def push_to_label_studio(options: Mapping[str, Any], definitions: Definitions, database: Database) -> dict[str, Any]:
    """Send what was chosen back to Label Studio, as `options` (`assets.PredictionConfig`) say."""
    settings = Settings.read()
    migrate(database)
    with database.begin(reading=True) as connection:
        chosen = labels.selected_images(connection)
    if not chosen:
        raise BadInputError("nothing is chosen for any task yet: flexy labels import, then flexy labels run")
    if options["send"]:
        LabelStudioClient.from_settings(settings)
    batches = sorted({each.task.batch for each in chosen})
    counts: Counter[str] = Counter()
    with dagster_instance(settings) as instance:
        _register(instance, batches)
        for stretch in contiguous_ranges(batches, instance.get_dynamic_partitions("label_batches")):
            config = {"label_predictions": options}
            result = run_assets(instance, definitions(), [assets.label_predictions], batches=stretch, config=config)
            events = result.asset_materializations_for_node("label_predictions")
            # Each batch's last event counts.
            for metadata in {event.partition: event.metadata for event in events}.values():
                outcomes = ("created", "replaced", "unchanged", "unsent")
                counts.update({name: int(str(metadata[name].value)) for name in outcomes})
    with database.begin(reading=True) as connection:
        errors = [sent.error for sent in labels.sent_predictions(connection) if sent.error]
    file = settings.tables / "label_predictions.json"
    sent = ", ".join(f"{count} {name}" for name, count in counts.items()) if options["send"] else "nothing sent"
    failed = f"{counts['unsent']} predictions could not be sent: {errors[-1]}" if counts["unsent"] and errors else ""
    return {**counts, "file": str(file), "text": f"{sent}\nfile  {file}", "failed": failed}


def review_agreement(definitions: Definitions, database: Database) -> dict[str, Any]:
    """How well scores agree with the people who reviewed what was sent, with their verdicts as they are now."""
    with database.begin(reading=True):
        pass
    with dagster_instance(Settings.read()) as instance:
        result = run_assets(instance, definitions(), [assets.label_review])
        agreement: pl.DataFrame = result.output_for_node("label_review")
    metadata: Any = result.asset_materializations_for_node("label_review")[0].metadata
    reviewed, left_out, notes = (metadata[name].value for name in ("pictures reviewed", "left out", "notes"))
    rows = agreement.to_dicts()
    lines = [f"pictures reviewed  {reviewed}", f"left out           {left_out}", f"notes              {notes}"]
    if rows:
        lines += ["", format_text_table(rows)]
    return {"reviewed": reviewed, "left_out": left_out, "notes": notes, "agreement": rows, "text": "\n".join(lines)}


def _selected_tasks(database: Database, names: Sequence[str]) -> list[LabelTaskRow]:
    with database.begin(reading=True) as connection:
        tasks = labels.label_tasks_of(connection)
    if not tasks:
        raise BadInputError("there are no tasks yet: flexy labels import")
    if strangers := [name for name in dict.fromkeys(names) if name not in {task.name for task in tasks}]:
        raise BadInputError(f"no task {', '.join(strangers)[:200]}: import it, or name tasks by their data.id")
    return [task for task in tasks if not names or task.name in names]


def _register(instance: Any, batches: Sequence[str]) -> None:
    """The table is the truth: another instance may have imported."""
    instance.add_dynamic_partitions("label_batches", list(batches))
