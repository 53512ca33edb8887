"""What `flexy compare` does: a comparison from plan to report, on the user's Dagster instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any
from uuid import UUID

import polars as pl

from flexy_assets.edits import assets, results
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.execution import contiguous_ranges, dagster_instance, run_assets
from flexy_assets.storage import edits
from resources.database import Database
from resources.files import write_atomically
from resources.images import ImageStore
from resources.settings import Settings

BATCHED = (assets.eacps_candidates, assets.ttflux_candidates, assets.edit_selections)
RESULTS = (assets.edit_scores, assets.edit_comparison, assets.edit_report)


def run_comparison(
    options: Mapping[str, Any], out: Path | None, definitions: Callable[[], Any], database: Database
) -> dict[str, Any]:
    """Make, measure, choose and compare what `options` (`assets.EditConfig`) ask for, or what of it is missing."""
    settings = Settings.read()
    config = assets.EditConfig(**options)
    # Checked before a run is begun: what cannot be planned should leave no trace.
    config.plan(settings, "")
    left_out = config.read()[2]
    with database.begin(reading=True):
        pass
    with dagster_instance(settings) as instance:
        planned = run_assets(instance, definitions(), [assets.edit_tasks], config={"edit_tasks": options})
        metadata: Any = planned.asset_materializations_for_node("edit_tasks")[0].metadata
        run, batches = metadata["comparison"].value, metadata["batches"].value
        nfe = 0
        for stretch in contiguous_ranges(batches, instance.get_dynamic_partitions("edit_batches")):
            result = run_assets(instance, definitions(), BATCHED, batches=stretch)
            nfe += sum(_steps_run(result, f"{method}_candidates") for method in METHODS)
        tables = run_assets(instance, definitions(), RESULTS, config={"edit_scores": {"comparison": run}})
        scores, compared = (tables.output_for_node(name) for name in ("edit_scores", "edit_comparison"))
    with database.begin(reading=True) as connection:
        plan = Comparison.from_json(edits.comparison_plan(connection, UUID(run)) or {})
    report = settings.tables / "edit_report.html"
    if out:
        write_results(out, scores, plan, ImageStore(settings.images))
        copyfile(report, out / report.name)
    failed = [f"{len(left_out)} lines were left out: {'; '.join(left_out[:5])}"] if left_out else []
    if errors := scores["error"].drop_nulls().to_list():
        failed.append(f"{len(errors)} candidates could not be made: {errors[-1]}")
    return {
        "comparison": run,
        "tasks": scores["task_id"].n_unique(),
        "left_out": left_out,
        "denoising_steps_run": nfe,
        "spent": results.denoising_cost(scores).to_dicts(),
        "winners": _winners(scores),
        "metrics": compared.to_dicts(),
        "report": str(report),
        "text": format_comparison(scores, compared, nfe, out / report.name if out else report),
        "failed": "; ".join(failed),
    }


def _steps_run(result: Any, asset: str) -> int:
    """What a run's batches say they added; each batch's last event counts."""
    batches = {event.partition: event.metadata for event in result.asset_materializations_for_node(asset)}
    return sum(int(metadata["denoising steps run now"].value) for metadata in batches.values())


def _winners(scores: pl.DataFrame) -> list[dict[str, Any]]:
    """By task, method and budget: the candidate that was chosen."""
    names = ["task_id", "method", "budget", "name", "stage", "seed", "potential", "pf", "cons", "lpips", "image_path"]
    return scores.filter("chosen").select(names).rename({"task_id": "id"}).to_dicts()


def write_results(out: Path, scores: pl.DataFrame, plan: Comparison, images: ImageStore) -> None:
    """The winners' pictures, and the candidates of each method and budget as JSON lines for flexy select."""
    out.mkdir(parents=True, exist_ok=True)
    for (method, budget), of_search in scores.group_by("method", "budget", maintain_order=True):
        lines = results.recorded_rows(of_search, plan)
        write_atomically(out / f"{method}_{budget}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    folder = out / "winners"
    folder.mkdir(exist_ok=True)
    tasks = {task: place for place, task in enumerate(scores["task_id"].unique(maintain_order=True))}
    for row in scores.filter("chosen").to_dicts():
        # Not by the task's own id, which may be anything.
        name = f"{tasks[row['task_id']]:04d}_{row['method']}_{row['budget']}.png"
        images.read(row["image_path"]).save(folder / name)


def format_comparison(scores: pl.DataFrame, compared: pl.DataFrame, nfe: int, report: Path) -> str:
    lines = [f"{scores['task_id'].n_unique()} tasks, {nfe} denoising steps run now"]
    lines += [
        f"{row['method']:7} at {row['budget']} steps: {row['least_nfe']} to {row['most_nfe']} steps run a task,"
        f" {row['candidates']} pictures looked at"
        for row in results.denoising_cost(scores).to_dicts()
    ]
    for row in compared.filter(pl.col("budget") == pl.col("rival_budget")).to_dicts():
        gain = "" if row["gain"] is None else f"{row['gain']:+.4f}"
        if row["gain_low"] is not None:
            gain += f" ({row['gain_low']:+.4f} to {row['gain_high']:+.4f})"
        lines.append(
            f"at {row['budget']} steps, {row['role']:9} {row['metric']:13} eacps won {row['wins']}, tied {row['ties']},"
            f" lost {row['losses']}   {gain}"
        )
    return "\n".join([*lines, f"report  {report}"])
