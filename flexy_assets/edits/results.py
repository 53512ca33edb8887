"""Builds the tables of a comparison from its candidates."""

import json
from collections.abc import Sequence, Set
from itertools import product
from typing import Any, Final
from uuid import UUID

import polars as pl

from flexy_assets.edits import comparison
from flexy_assets.edits.metrics import EDIT_METRICS
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.storage.edits import EDIT_CANDIDATES_SCHEMA, CandidateRow, EditTaskRow
from resources.metrics import Metric
from resources.metrics.edits import METRICS

_ROLES = ("ground truth", "independent", "selecting")
COMPARED_METRICS: Final = tuple(metric for role in _ROLES for metric in METRICS.values() if metric.role == role)

EDIT_SCORES_SCHEMA: Final[dict[str, Any]] = dict(
    pl.Schema(EDIT_CANDIDATES_SCHEMA | dict.fromkeys((*EDIT_METRICS, "potential"), float))
)
"""The columns of the asset `edit_scores`."""


def with_potential(candidates: pl.DataFrame, plan: Comparison) -> pl.DataFrame:
    """Return `edit_scores`: every candidate with its potential, null where a score is missing."""
    weights = plan.potential.weights
    total = sum((pl.col(metric) * weight for metric, weight in weights.items()), pl.lit(0.0))
    return candidates.with_columns(potential=total)


def select_winners(scores: pl.DataFrame) -> pl.DataFrame:
    """Return one row per winner and metric (`comparison.VALUES_SCHEMA`)."""
    winners = scores.filter("chosen").select("task_id", "method", "budget", *EDIT_METRICS, "potential")
    long = winners.unpivot(index=["task_id", "method", "budget"], variable_name="metric", value_name="value")
    return long.drop_nulls("value").select(pl.col(name).cast(kind) for name, kind in comparison.VALUES_SCHEMA.items())


def compared_metrics(values: pl.DataFrame) -> list[Metric]:
    """Return the metrics that have a value; only the drawn world has a ground truth."""
    names = set(values["metric"].unique())
    return [metric for metric in COMPARED_METRICS if metric.name in names]


def compare_winners(scores: pl.DataFrame) -> pl.DataFrame:
    """Compare EACPS with TTFLUX at every budget, and at smaller budgets than TTFLUX's (`COMPARISON_SCHEMA`)."""
    values = select_winners(scores)
    budgets = (sorted(values.filter(method=method)["budget"].unique()) for method in METHODS)
    pairs = [(own, rival) for own, rival in product(*budgets) if own <= rival]
    return comparison.compare_methods(values, compared_metrics(values), *METHODS, budgets=pairs)


def winner_levels(scores: pl.DataFrame) -> pl.DataFrame:
    """Return each method's mean at each budget (`comparison.MEAN_SCORES_SCHEMA`)."""
    values = select_winners(scores)
    return comparison.mean_scores(values, compared_metrics(values))


def denoising_cost(scores: pl.DataFrame) -> pl.DataFrame:
    """Return searches, candidates, denoising steps (total, least, most) and seconds of each method and budget."""
    costs = pl.len().alias("candidates"), pl.sum("nfe", "elapsed_ms", "scored_ms")
    searches = scores.group_by("method", "budget", "task_id").agg(*costs).group_by("method", "budget")
    counts = pl.len().alias("searches"), pl.sum("candidates", "nfe")
    bounds = pl.min("nfe").alias("least_nfe"), pl.max("nfe").alias("most_nfe")
    seconds = {"seconds": pl.sum("elapsed_ms") / 1000, "scorer_seconds": pl.sum("scored_ms") / 1000}
    return searches.agg(*counts, *bounds, **seconds).sort("method", "budget")


def recorded_rows(scores: pl.DataFrame, plan: Comparison) -> list[str]:
    """Return one search's finished candidates as JSON lines, in the format of qwen3-score and `flexy select`.

    A variant's `seed` is that of its last move; the seed of its noise is its parent's.
    """
    phases = {"global": "stage1", "local": "stage2"}
    finished = scores.filter(pl.col("stop_step") == pl.col("num_steps")).to_dicts()
    moves = [json.loads(row["noise_moves"]) for row in finished]
    seeds = {
        (row["task_id"], row["name"]): noise_moves[-1][1] if noise_moves else row["seed"]
        for row, noise_moves in zip(finished, moves, strict=True)
    }
    editor = {"model_id": plan.editor, "num_inference_steps": plan.steps, "true_cfg_scale": plan.guidance}
    lines = []
    for row, noise_moves in zip(finished, moves, strict=True):
        task, parent_seed = row["task_id"], seeds.get((row["task_id"], row["parent"]))
        entry: dict[str, Any] = {"id": task, "phase": phases.get(row["stage"], row["stage"])}
        entry |= {name: row[name] for name in ("prompt", "image_path")}
        entry |= {"seed": seeds[task, row["name"]], "parent_seed": parent_seed} | editor
        entry |= {"clip_prompt_following": row["pf"], "clip_consistency": row["cons"]}
        entry |= {name: row[name] for name in ("lpips", "layout", "potential", "strength")}
        entry |= {"noise": {"seed": row["seed"], "moves": noise_moves}, "chosen": row["chosen"]}
        lines.append(json.dumps(entry))
    return lines


def describe_comparison(plan: Comparison, scores: pl.DataFrame) -> dict[str, str]:
    """Return the settings and costs of a comparison, as the report shows them."""
    eacps = plan.eacps
    previews = f"previews after {eacps.preview:.0%} of the steps, {eacps.keep:.0%} of them continued"
    spending = f"{'no previews' if eacps.keep == 1 else previews}, {eacps.local_share:.0%} of the budget after"
    spending += f" {eacps.scouts} seeds on variants (t {eacps.t:g}, strength {eacps.strength:g})"
    selector = str(plan.potential) if plan.choose == "potential" else "mean rank in PF, CONS, LPIPS and layout"
    if plan.reproduce:
        spending, selector = "as published: seeds by arithmetic", str(plan.potential)
    description = {
        "editor": plan.editor,
        "steps of a full denoise": str(plan.steps),
        "guidance": f"{plan.guidance:g}",
        "budgets": f"{', '.join(map(str, plan.budgets))} full denoises",
        "tasks": str(scores["task_id"].n_unique()),
        "EACPS selects by": selector,
        "potential": str(plan.potential),
        "EACPS": spending,
        "TTFLUX": f"{plan.ttflux.replace('_', '-')} search, selects by pf",
        "seed": str(plan.seed),
        "comparison": str(plan.run_id),
    }
    for row in denoising_cost(scores).to_dicts():
        bounds = dict.fromkeys((row["least_nfe"], row["most_nfe"]))
        description[f"{row['method']} at {row['budget']} steps"] = (
            f"{' to '.join(map(str, bounds))} steps per task, {row['candidates'] / row['searches']:.1f} candidates,"
            f" {row['seconds'] / row['searches']:.2f} s and {row['scorer_seconds'] / row['searches']:.2f} s of scorers"
        )
    return description


def batch_metadata(
    tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow], known: Set[UUID]
) -> dict[str, dict[str, Any]]:
    """Return each partition's counts as Dagster's UI shows them; candidates that are not in `known` are new."""
    batches = {task.id: task.batch for task in tasks}
    metadata: dict[str, dict[str, Any]] = {}
    for batch in dict.fromkeys(batches.values()):
        own = [candidate for candidate in candidates if batches[candidate.task] == batch]
        new = [candidate for candidate in own if candidate.id not in known]
        errors = [candidate.error for candidate in own if candidate.error]
        counts = {"candidates": sum(candidate.finished for candidate in own), "new images": len(new)}
        counts["new denoising steps"] = sum(candidate.nfe for candidate in new)
        counts["denoising steps"] = sum(candidate.nfe for candidate in own)
        metadata[batch] = counts | ({"failed": len(errors), "last failure": errors[-1]} if errors else {})
    return metadata


MAX_SHOWN = 80  # images on a partition's contact sheet


def contact_sheet_rows(
    tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow], batch: str
) -> list[EditTaskRow | CandidateRow]:
    """Return the sources of the partition's first tasks, each before its images at the largest budget."""
    budget = max((candidate.budget for candidate in candidates), default=0)
    rows: list[EditTaskRow | CandidateRow] = []
    for task in (task for task in tasks if task.batch == batch):
        own = [c for c in candidates if (c.task, c.budget) == (task.id, budget) and c.image_path]
        if not rows or len(rows) + 1 + len(own) <= MAX_SHOWN:
            rows += [task, *own]
    return rows[:MAX_SHOWN]
