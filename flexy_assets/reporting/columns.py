"""Metadata of finished tables for the UI: the meaning of their columns, and a plot."""

from collections.abc import Mapping
from typing import Any, Final

import dagster as dg
import polars as pl

from flexy_assets.reporting.thumbnails import markdown_image
from resources.metrics import PRODUCTS, Metric, metrics

_WITH_INTERVAL: Final = (
    *("pearson", "spearman", "within", "share", "base", "a_step", "guided_step", "slope", "adjusted"),
    *("gain", "win_rate", "auc"),
)
"""Columns with two more for the ends of their 95 % interval, `NAME_low` and `NAME_high`."""


def _describe_metric(metric: Metric) -> str:
    """Return what a column of the metric's values means."""
    notes = [metric.unit] * bool(metric.unit) + ["lower is better"] * (not metric.higher_is_better)
    return f"{metric.label}: {metric.description}" + (f" ({'; '.join(notes)})" if notes else "")


COLUMN_DESCRIPTIONS: Final[dict[str, str]] = {
    # What a row is about.
    "engine": "The model that made the images",
    "run_id": "The sweep the image belongs to",
    "run": "The comparison the candidate belongs to",
    "image_id": "The image's id in bench_run_results",
    "candidate_id": "The candidate's id",
    "task_id": "The task's id, as its file or project has it",
    "index": "The image's place in its sweep, from 0",
    "batch": "The partition it is made in",
    "project": "The number of the Label Studio project",
    "character": "Whose face it should be",
    "metric": "Which score",
    "target": "Which score, or overall: the weighted mean of their z-scores; value: overall for the time it takes",
    "n": "How many images or tasks the row rests on",
    "note": "What the data do not show, and why",
    "summary": "The row in words",
    # How an image is made.
    "prompt": "What the image should show",
    "weights": "What made the image: the engine, its weights' hash, its precision",
    "category": "The prompt's category",
    "complexity": "How complex the prompt is, as its file says",
    "negative_prompt": "What it should not show",
    "steps": "Denoising steps",
    "guidance": "Guidance scale; 1 and less is off, null where the engine has none",
    "scheduler": "What takes the steps, as in ddim; null for the engine's own",
    "seed": "Seed of the noise",
    "width": "Pixels across",
    "height": "Pixels down",
    "image_path": "Its file, below the image root",
    "elapsed_ms": "Milliseconds that making it took",
    "created_at": "When it was made, in UTC",
    "error": "Why there is no image or no result",
    # What is expected, and how sure that is.
    "predicted": "The score expected at these settings",
    "mean": "The unadjusted mean",
    "low": "Lower end of the 95 % interval",
    "high": "Upper end of the 95 % interval",
    "p": "Probability of an effect as large by chance, 0 to 1",
    "flat_p": "Probability of a response as large by chance, 0 to 1",
    "clusters": "How many independent groups the intervals resample",
    "clusters_by": "What such a group is: a prompt, a pair of prompt and seed, or an image",
    "seconds": "Seconds an image takes",
    "steps_from": "Fewest steps looked at",
    "steps_to": "Most steps looked at",
    "guidance_from": "Lowest guidance looked at",
    "guidance_to": "Highest guidance looked at",
    # metric_correlations, metric_components
    "left": "One of the two that are correlated",
    "right": "The other one",
    "pearson": "Pearson's correlation, −1 to 1",
    "spearman": "Spearman's rank correlation, −1 to 1",
    "within": "Pearson's correlation among images of one prompt",
    "within_n": "Images of prompts that have two or more",
    "component": "The component's number, from the largest",
    "share": "The component's share of the variance, 0 to 1",
    "loadings": "Each metric's correlation with the component, with its interval",
    # sweep_times
    "base": "Seconds an image takes whatever its steps",
    "a_step": "Seconds a step adds",
    "guided_step": "Seconds a step adds besides where guidance is on",
    "outliers": "Images far off the line, which count less",
    # sweep_regression
    "model": "The form, or the average of all",
    "weight": "The form's weight in the average, 0 to 1",
    "overall_weight": "The metric's weight in overall, 1 in total",
    "r2": "Share of the variance explained; of sweep_regression held out, below 0 where it is worse than the mean",
    "rmse": "Root mean squared error held out, in the metric's unit",
    "prompt_share": "Share of the variance at equal settings that is the prompts' (and seeds', where shared), 0 to 1",
    # sweep_response, sweep_effects, diminishing_returns
    "curve": "Over what: steps, guidance, or the surface of both",
    "slope": "What one more step, or one more of guidance, adds",
    "images": "Images with settings near these",
    "effect": "Which: steps, guidance or their interaction",
    "change": "What the score gains from the 10th to the 90th percentile of the setting",
    "least_gain": "What one more step must gain, in the score's unit",
    "beyond": "The steps beyond which one more gains less than that",
    # pareto_front, sweet_spots
    "on_front": "Whether no other setting is both better and quicker",
    "front_probability": "Share of refits to resampled images in which it is on the front, 0 to 1",
    "optimism": "What the response is higher there, because it selected the setting; not part of what is expected",
    "steps_low": "Fewest steps of the ranges that hold together: all of them lie in the region",
    "steps_high": "Most steps of these ranges",
    "guidance_low": "Lowest guidance of these ranges",
    "guidance_high": "Highest guidance of these ranges",
    "reason": "Why no setting is named",
    "region": "The settings not significantly worse than the best",
    "region_share": "The region's share of the settings tried, 0 to 1",
    "seconds_share": "The quickest setting's share of the best one's seconds",
    "loss": "What the quickest setting is expected to lose against the best",
    "loss_high": "The most it may lose (95 %)",
    # sweep_comparison
    "by": "What is compared: engines, runs or prompts",
    "name": "Which of them",
    "adjusted": "The mean at the same settings as the others",
    # Edits
    "chosen": "Whether this one was selected",
    "source": "The image to edit, below the image root",
    "source_path": "The image that is edited, below the image root",
    "method": "Which search: eacps or ttflux",
    "budget": "Denoising steps a search may run",
    "stage": "Which part of the search made it",
    "parent": "The candidate it varies",
    "strength": "How much noise was added to its parent, 0 to 1",
    "noise_moves": "How its noise was moved: pairs of distance and seed, as JSON",
    "stop_step": "The step after which it was stopped or finished",
    "num_steps": "Steps from its noise to its image",
    "nfe": "Denoising steps that were run for it",
    "scored_ms": "Milliseconds that scoring it took",
    "role": "Its role: ground truth, independent of the search, or used for selection",
    "rival": "The other search",
    "rival_budget": "Denoising steps the other may run",
    "left_out": "Tasks that lack a value of either",
    "wins": "Tasks where the method is better",
    "ties": "Tasks where the two tie",
    "losses": "Tasks where the rival is better",
    "gain": "Mean paired difference, above 0 where the method is better",
    "win_rate": "Wins among the tasks that are no tie, 0 to 1",
    # Labels
    "mask_path": "The mask of the region to inpaint, below the image root",
    "character_path": "An image of the character, below the image root",
    "final_path": "The image that people reviewed, below the image root",
    "verdict": "The reviewers' choices, separated by |",
    "positive": "Images without issues, by the reviewers",
    "negative": "Images with issues",
    "auc": "The probability that a good image has the better score, 0 to 1",
    "threshold": "The score that separates the two best",
    "true_positive": "Good images above it",
    "false_positive": "Others above it",
    "true_negative": "Others below it",
    "false_negative": "Good images below it",
    **{f"{name}_low": "Lower end of its 95 % interval" for name in _WITH_INTERVAL},
    **{f"{name}_high": "Upper end of its 95 % interval" for name in _WITH_INTERVAL},
    **{metric.name: _describe_metric(metric) for product in reversed(PRODUCTS) for metric in metrics(product).values()},
}
"""By column name; `column_schema_metadata` takes the meanings that differ in a table."""


def column_schema_metadata(schema: Mapping[str, Any], **others: str) -> dict[str, dg.TableSchema]:
    """Return an asset's metadata for the columns of its table, each with type and meaning.

    `others` are meanings that differ from `COLUMN_DESCRIPTIONS`. Raises KeyError for a column without any.
    """
    meanings = COLUMN_DESCRIPTIONS | others
    described = [dg.TableColumn(name, _kind(dtype), meanings[name]) for name, dtype in pl.Schema(schema).items()]
    return {"dagster/column_schema": dg.TableSchema(described)}


def plot_metadata(words: str, picture: bytes | None) -> dict[str, dg.MetadataValue[Any]]:
    """Return a table's metadata for its plot; nothing where there is none."""
    return {"plot": dg.MetadataValue.md(markdown_image(words, picture))} if picture else {}


def _kind(dtype: Any) -> str:
    """Return a type in few words: `Int64`, `list of {steps, guidance}`."""
    if isinstance(dtype, pl.List):
        return f"list of {_kind(dtype.inner)}"
    if isinstance(dtype, pl.Struct):
        return f"{{{', '.join(field.name for field in dtype.fields)}}}"
    return str(dtype)
