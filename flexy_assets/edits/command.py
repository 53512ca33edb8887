"""`flexy compare`: a comparison from plan to report, on the user's Dagster instance."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from flexy_assets.edits import assets, results
from flexy_assets.edits.labels import format_denoises
from flexy_assets.edits.plan import Comparison
from flexy_assets.edits.report.summary import summarize_comparison
from flexy_assets.edits.sources import PlannedComparison
from flexy_assets.execution import contiguous_ranges, dagster_instance, run_assets
from flexy_assets.reporting.formatting import format_count
from flexy_assets.reporting.text_tables import format_text_table
from flexy_assets.storage import edits
from resources.database import Database
from resources.files import check_output, write_atomically
from resources.images import ImageStore
from resources.settings import Settings

BATCHED = (assets.eacps_candidates, assets.ttflux_candidates, assets.edit_selections)
RESULTS = (assets.edit_scores, assets.edit_comparison, assets.edit_report)
WINNER_COLUMNS = ("id", "method", "budget", "name", "stage", "seed", "potential", "pf", "cons", "lpips", "image_path")


def run_comparison(
    options: Mapping[str, Any], out: Path | None, definitions: Callable[[], Any], database: Database
) -> dict[str, Any]:
    """Run what is missing of the comparison that `options` (`assets.EditConfig`) describe; return its document."""
    settings = Settings.read()
    config = assets.EditConfig(**options)
    # Checked before a Dagster run starts: an invalid plan leaves no trace.
    config.plan(settings, "")
    config.read_tasks()
    with database.begin(reading=True):
        pass
    code = definitions()
    with dagster_instance(settings) as instance:
        run_assets(instance, code, [assets.edit_tasks], config={"edit_tasks": options})
        planned: PlannedComparison = code.resources["work"].results["edit_tasks"]
        comparison_id, plan, skipped = planned.plan.run_id, planned.plan, planned.skipped
        with database.begin(reading=True) as connection:
            steps_before = edits.count_denoising_steps(connection, comparison_id)
        for batch_range in contiguous_ranges(planned.batches, instance.get_dynamic_partitions("edit_batches")):
            run_assets(instance, code, BATCHED, batches=batch_range)
        with database.begin(reading=True) as connection:
            new_steps = edits.count_denoising_steps(connection, comparison_id) - steps_before
        tables = run_assets(instance, code, RESULTS, config={"edit_scores": {"comparison": str(comparison_id)}})
        scores, compared = (tables.output_for_node(name) for name in ("edit_scores", "edit_comparison"))
    report = settings.tables / "edit_report.html"
    if out:
        write_results(out, scores, plan, ImageStore.from_settings(settings))
        _write(out / report.name, report.read_bytes())
    failed = [f"{format_count(len(skipped), 'line')} skipped: {'; '.join(skipped[:5])}"] if skipped else []
    if errors := scores["error"].drop_nulls().to_list():
        failed.append(f"{format_count(len(errors), 'candidate')} failed: {errors[-1]}")
    verdict = summarize_comparison(scores, compared, results.winner_levels(scores), plan.steps)[0].striptags()
    winners = scores.filter("chosen").rename({"task_id": "id"}).select(WINNER_COLUMNS)
    return {
        **{"comparison": str(comparison_id), "tasks": scores["task_id"].n_unique(), "left_out": skipped},
        **{"denoising_steps_run": new_steps, "spent": results.denoising_cost(scores).to_dicts()},
        **{"winners": winners.to_dicts(), "metrics": compared.to_dicts(), "report": str(report)},
        "verdict": verdict,
        "text": format_comparison(
            scores, compared, new_steps, plan.steps, out / report.name if out else report, verdict
        ),
        "failed": "; ".join(failed),
    }


def write_results(out: Path, scores: pl.DataFrame, plan: Comparison, images: ImageStore) -> None:
    """Write the winners' images, and the candidates of each method and budget as JSON lines for `flexy select`.

    Budgets in the files' names are full denoises, as `--budget` has them.
    """
    for folder in (out, winners := out / "winners"):
        check_output(folder, folder=True).mkdir(exist_ok=True)
    for (method, budget), rows in scores.group_by("method", "budget", maintain_order=True):
        lines = results.recorded_rows(rows, plan)
        _write(out / f"{method}_{budget // plan.steps}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    positions = {task: position for position, task in enumerate(scores["task_id"].unique(maintain_order=True))}
    for row in scores.filter("chosen").to_dicts():
        # A task's id may contain any character, so files are named by its position.
        name = f"{positions[row['task_id']]:04d}_{row['method']}_{row['budget'] // plan.steps}.png"
        images.read(row["image_path"]).save(content := io.BytesIO(), "PNG")
        _write(winners / name, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    write_atomically(check_output(path), content)


def format_comparison(
    scores: pl.DataFrame, compared: pl.DataFrame, new_steps: int, steps: int, report: Path, verdict: str
) -> str:
    """Return what was run, what it cost, each metric's result at equal budgets, and the verdict, for a person."""
    spent = [
        {"search": row["method"], "budget": format_denoises(row["budget"], steps)}
        | {"steps a task": "–".join(map(str, dict.fromkeys((row["least_nfe"], row["most_nfe"]))))}
        | {"candidates": row["candidates"], "seconds": row["seconds"]}
        for row in results.denoising_cost(scores).to_dicts()
    ]
    metrics = [
        ({"budget": format_denoises(row["budget"], steps)} if scores["budget"].n_unique() > 1 else {})
        | {"metric": row["metric"], "role": row["role"]}
        | {"eacps won": row["wins"], "tied": row["ties"], "lost": row["losses"], "gain (95 %)": _format_gain(row)}
        for row in compared.filter(pl.col("budget") == pl.col("rival_budget")).to_dicts()
    ]
    counts = format_count(scores["task_id"].n_unique(), "task"), format_count(new_steps, "new denoising step")
    tables = [format_text_table(table) for table in (spent, metrics) if table]
    return "\n\n".join([", ".join(counts), *tables, f"report  {report}\n{verdict}"])


def _format_gain(row: Mapping[str, Any]) -> str:
    gain, low, high = (None if row[name] is None else f"{row[name]:+.3f}" for name in ("gain", "gain_low", "gain_high"))
    return f"{gain} ({low} to {high})" if low else gain or ""
