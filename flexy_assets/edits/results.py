"""From candidates to the tables that people read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from itertools import product
from typing import Any, Final
from uuid import UUID

import polars as pl

from flexy_assets.edits import comparison
from flexy_assets.edits.comparison import ComparedMetric
from flexy_assets.edits.metrics import EDIT_METRICS, JUDGED_METRICS
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.storage.edits import EDIT_CANDIDATES_SCHEMA, CandidateRow, EditTaskRow

ROLES: tuple[ComparedMetric, ...] = (
    ComparedMetric("truth", "truth"),
    ComparedMetric("carried_out", "truth"),
    ComparedMetric("preserved", "truth"),
    ComparedMetric("hps_v2_score", "held-out"),
    ComparedMetric("aes_v2_score", "held-out"),
    *(ComparedMetric(name, "held-out") for name in JUDGED_METRICS),
    *comparison.SELECTING_ROLE,
)
"""What a comparison is judged by, the truth first."""

EDIT_SCORES_SCHEMA: Final[dict[str, Any]] = dict(
    pl.Schema(EDIT_CANDIDATES_SCHEMA | dict.fromkeys((*EDIT_METRICS, "potential"), float))
)
"""The columns of the asset `edit_scores`."""


def with_potential(candidates: pl.DataFrame, plan: Comparison) -> pl.DataFrame:
    """`edit_scores`: every candidate with its potential, NULL where a score is missing."""
    weights = plan.potential.weights
    total = sum((pl.col(metric) * weight for metric, weight in weights.items()), pl.lit(0.0))
    return candidates.with_columns(potential=total)


def select_winners(scores: pl.DataFrame) -> pl.DataFrame:
    """One row a winner and metric (`comparison.VALUES`)."""
    chosen = scores.filter("chosen").select("task_id", "method", "budget", *EDIT_METRICS, "potential")
    long = chosen.unpivot(index=["task_id", "method", "budget"], variable_name="metric", value_name="value")
    return long.drop_nulls("value").select(pl.col(name).cast(kind) for name, kind in comparison.VALUES_SCHEMA.items())


def compared_metrics(values: pl.DataFrame) -> list[ComparedMetric]:
    """The metrics of which there is any value: only the drawn world knows a truth."""
    there = set(values["metric"].unique())
    return [metric for metric in ROLES if metric.name in there]


def compare_winners(scores: pl.DataFrame) -> pl.DataFrame:
    """EACPS against TTFLUX at every budget, and at smaller ones than TTFLUX's (`comparison.COMPARISON`)."""
    values = select_winners(scores)
    ours, theirs = (sorted(values.filter(method=method)["budget"].unique()) for method in METHODS)
    pairs = [(mine, other) for mine, other in product(ours, theirs) if mine <= other]
    return comparison.compare_methods(values, compared_metrics(values), *METHODS, budgets=pairs)


def winner_levels(scores: pl.DataFrame) -> pl.DataFrame:
    """Each method's mean at each budget (`comparison.LEVELS`)."""
    values = select_winners(scores)
    return comparison.mean_scores(values, compared_metrics(values))


def denoising_cost(scores: pl.DataFrame) -> pl.DataFrame:
    """Per method and budget: searches, candidates, denoising steps run (all, fewest and most a search), seconds."""
    each = scores.group_by("method", "budget", "task_id").agg(
        pl.sum("nfe"), pl.len(), pl.sum("elapsed_ms", "scored_ms")
    )
    return (
        each.group_by("method", "budget")
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
    """One search's finished candidates as JSON lines, in the form that qwen3-score writes and `flexy select` reads.

    A variant's `seed` is that of its last move: its noise has its parent's.
    """
    phases = {"global": "stage1", "local": "stage2"}
    finished = [row | {"moves": json.loads(row["moves"])} for row in scores.to_dicts() if row["until"] == row["path"]]
    seeds = {(row["task_id"], row["name"]): row["moves"][-1][1] if row["moves"] else row["seed"] for row in finished}
    lines = []
    for row in finished:
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
            "noise": {"seed": row["seed"], "moves": row["moves"]},
            "chosen": row["chosen"],
        }
        lines.append(json.dumps(entry))
    return lines


def describe_comparison(plan: Comparison, scores: pl.DataFrame) -> dict[str, str]:
    """How the comparison was made, for people."""
    eacps, cost = plan.eacps, denoising_cost(scores)
    previews = f"previews after {eacps.preview:.0%} of the steps, of which {eacps.keep:.0%} are carried on"
    if eacps.keep == 1:
        previews = "no previews"
    spends = f"{previews}, {eacps.local_share:.0%} of what {eacps.scouts} seeds leave on variants"
    chooses = str(plan.potential) if plan.choose == "potential" else "mean rank in PF, CONS, LPIPS and layout"
    if plan.reproduce:
        spends, chooses = "as published: seeds by arithmetic", str(plan.potential)
    found = {
        "editor": plan.editor,
        "steps of a full denoise": str(plan.steps),
        "guidance": f"{plan.guidance:g}",
        "budgets": f"{', '.join(map(str, plan.budgets))} full denoises",
        "tasks": str(scores["task_id"].n_unique()),
        "EACPS chooses by": chooses,
        "potential": str(plan.potential),
        "EACPS": spends if plan.reproduce else f"{spends} (t {eacps.t:g}, strength {eacps.strength:g})",
        "TTFLUX": f"{plan.ttflux.replace('_', '-')} search, chooses by pf",
        "seed": str(plan.seed),
        "comparison": str(plan.run_id),
    }
    for row in cost.to_dicts():
        steps = (
            f"{row['least_nfe']}" if row["least_nfe"] == row["most_nfe"] else f"{row['least_nfe']} to {row['most_nfe']}"
        )
        found[f"{row['method']} at {row['budget']} steps"] = (
            f"{steps} steps run a task, {row['candidates'] / row['searches']:.1f} candidates,"
            f" {row['seconds'] / row['searches']:.2f} s and {row['scorer_seconds'] / row['searches']:.2f} s of scorers"
        )
    return found


def group_by_batch(
    tasks: Sequence[EditTaskRow], made: Sequence[CandidateRow], known: Set[UUID]
) -> dict[str, dict[str, Any]]:
    """Per batch what there is, and what is new since `known`."""
    batch = {task.id: task.batch for task in tasks}
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(batch.values()):
        mine = [c for c in made if batch[c.task] == key]
        new = [c for c in mine if c.id not in known]
        failed = [c.error for c in mine if c.error]
        found[key] = {
            "candidates": sum(c.until == c.path for c in mine),
            "pictures made now": len(new),
            "denoising steps run now": sum(c.nfe for c in new),
            "denoising steps run": sum(c.nfe for c in mine),
        } | ({"failed": len(failed), "last failure": failed[-1]} if failed else {})
    return found


MAX_SHOWN = 80
"""Pictures on a batch's contact sheet."""


def contact_sheet_rows(tasks: Sequence[EditTaskRow], made: Sequence[CandidateRow], batch: str) -> list[Any]:
    """Of the batch's first tasks: the source, then every picture made of it for the largest budget."""
    budget = max((c.budget for c in made), default=0)
    found: list[Any] = []
    for task in tasks:
        mine = [c for c in made if (c.task, c.budget) == (task.id, budget) and c.image_path]
        if task.batch == batch and (not found or len(found) + 1 + len(mine) <= MAX_SHOWN):
            found += [task, *mine]
    return found[:MAX_SHOWN]
