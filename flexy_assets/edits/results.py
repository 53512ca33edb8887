"""Builds the tables of a comparison from its candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
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

COMPARED_METRICS: Final = tuple(
    metric
    for role in ("ground truth", "independent", "selecting")
    for metric in METRICS.values()
    if metric.role == role
)
"""The metrics of a comparison, the ground truth first."""

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
    searches = scores.group_by("method", "budget", "task_id").agg(
        pl.sum("nfe"), pl.len(), pl.sum("elapsed_ms", "scored_ms")
    )
    return (
        searches.group_by("method", "budget")
        .agg(
            pl.len().alias("searches"),
            pl.sum("len").alias("candidates"),
            pl.sum("nfe"),
            pl.min("nfe").alias("least_nfe"),
            pl.max("nfe").alias("most_nfe"),
            (pl.sum("elapsed_ms") / 1000).alias("seconds"),
            (pl.sum("scored_ms") / 1000).alias("scorer_seconds"),
        )
        .sort("method", "budget")
    )


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
    lines = []
    for row, noise_moves in zip(finished, moves, strict=True):
        entry: Mapping[str, Any] = {
            "id": row["task_id"],
            "phase": phases.get(row["stage"], row["stage"]),
            "prompt": row["prompt"],
            "image_path": row["image_path"],
            "seed": seeds[row["task_id"], row["name"]],
            "parent_seed": seeds.get((row["task_id"], row["parent"])),
            "model_id": plan.editor,
            "num_inference_steps": plan.steps,
            "true_cfg_scale": plan.guidance,
            "clip_prompt_following": row["pf"],
            "clip_consistency": row["cons"],
            "lpips": row["lpips"],
            "layout": row["layout"],
            "potential": row["potential"],
            "strength": row["strength"],
            "noise": {"seed": row["seed"], "moves": noise_moves},
            "chosen": row["chosen"],
        }
        lines.append(json.dumps(entry))
    return lines


def describe_comparison(plan: Comparison, scores: pl.DataFrame) -> dict[str, str]:
    """Return the settings and costs of a comparison, as the report shows them."""
    eacps, cost = plan.eacps, denoising_cost(scores)
    previews = f"previews after {eacps.preview:.0%} of the steps, {eacps.keep:.0%} of them continued"
    if eacps.keep == 1:
        previews = "no previews"
    spending = f"{previews}, {eacps.local_share:.0%} of the budget after {eacps.scouts} seeds on variants"
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
        "EACPS": spending if plan.reproduce else f"{spending} (t {eacps.t:g}, strength {eacps.strength:g})",
        "TTFLUX": f"{plan.ttflux.replace('_', '-')} search, selects by pf",
        "seed": str(plan.seed),
        "comparison": str(plan.run_id),
    }
    for row in cost.to_dicts():
        bounds = dict.fromkeys((row["least_nfe"], row["most_nfe"]))
        description[f"{row['method']} at {row['budget']} steps"] = (
            f"{' to '.join(map(str, bounds))} steps per task, {row['candidates'] / row['searches']:.1f} candidates,"
            f" {row['seconds'] / row['searches']:.2f} s and {row['scorer_seconds'] / row['searches']:.2f} s of scorers"
        )
    return description


@dataclass(frozen=True)
class BatchCounts:
    """What the candidates of one partition amount to, and how much of it is new."""

    candidates: int
    new_images: int
    new_steps: int
    steps: int
    errors: Sequence[str]

    def metadata(self) -> dict[str, Any]:
        """Return the counts as Dagster's UI shows them."""
        return {
            "candidates": self.candidates,
            "new images": self.new_images,
            "new denoising steps": self.new_steps,
            "denoising steps": self.steps,
        } | ({"failed": len(self.errors), "last failure": self.errors[-1]} if self.errors else {})


def count_by_batch(
    tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow], known: Set[UUID]
) -> dict[str, BatchCounts]:
    """Return the counts of each partition; candidates that are not in `known` are new."""
    batches = {task.id: task.batch for task in tasks}
    counts: dict[str, BatchCounts] = {}
    for batch in dict.fromkeys(batches.values()):
        own = [candidate for candidate in candidates if batches[candidate.task] == batch]
        new = [candidate for candidate in own if candidate.id not in known]
        counts[batch] = BatchCounts(
            candidates=sum(candidate.finished for candidate in own),
            new_images=len(new),
            new_steps=sum(candidate.nfe for candidate in new),
            steps=sum(candidate.nfe for candidate in own),
            errors=[candidate.error for candidate in own if candidate.error],
        )
    return counts


MAX_SHOWN = 80
"""Images on a partition's contact sheet."""


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
