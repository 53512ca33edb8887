"""The report's sentences: the recommended settings with their uncertainty, and what could not be computed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import polars as pl

from flexy_assets.reporting.formatting import format_count, format_number, join_words
from flexy_assets.sweep.analysis import (
    METRIC_LABELS,
    SETTING_LABELS,
    TARGET_LABELS,
    VALUE_TOLERANCE,
    AnalysisTables,
    TimeHeaps,
    setting_names,
)
from flexy_assets.sweep.plots import format_guidance, format_setting
from flexy_assets.sweep.report.points import failed_images

LOW_R2: Final = 0.1
"""Below this share of the variance explained (a correlation of about 0.3), the evidence is called weak."""

SIGNIFICANCE_LEVEL: Final = 0.05
"""An effect is significant if its probability by chance is below."""
LARGE_SHARE: Final = 0.9
"""Of the metrics' variance, which the components that are described explain together."""
STRONG_CORRELATION: Final = 0.5
"""A component is described by the metrics whose correlation with it is at least so large."""
SHOWN_SWEEPS: Final = 4
"""Sweeps that are named one by one."""

Row = dict[str, Any]


@dataclass(frozen=True)
class AnswerFigure:
    """One of the three figures of the answer: a setting or ranges of them, facts about it, and what it is."""

    title: str
    setting: str
    facts: list[str]
    caption: str


@dataclass(frozen=True)
class Answer:
    """What the report says of one engine first: its figures, or the `reason` why no setting is named.

    `warning` is said before them, `remarks` after.
    """

    figures: list[AnswerFigure]
    reason: str
    warning: str
    remarks: list[str]


def answer_sweep(tables: AnalysisTables, settings: str) -> Answer:
    """Return the answer of one engine's tables: the setting to use, the best, what is as good, and the evidence."""
    rows = {row["target"]: row for row in tables.spots.iter_rows(named=True)}
    best, lead = rows.get("overall"), rows.get("value")
    if best is None or lead is None:
        return Answer([], "there is no image", "", [])
    notes = (best["note"] or "").split("; ")
    left_out = [f"{note}." for note in notes if "is left out: " in note]
    if best["steps"] is None:
        return Answer([], best["reason"] or "nothing could be fitted", "", left_out)
    if same := (lead["steps"], lead["guidance"]) == (best["steps"], best["guidance"]):
        caption = "No quicker setting is as good."
    else:
        loss, most = (format_number(max(lead[name], 0), 2) for name in ("loss", "loss_high"))
        better = f"expected {loss} SD" if lead["loss"] > 0 else "not expected to be"
        caption = f"The best that is sure, {better} better than the lead (95 %: at most {most} SD)."
    figures = [
        AnswerFigure(
            *("Lead: use this", format_setting(lead), _facts(lead)),
            f"The quickest setting that is as surely good as the best, within {VALUE_TOLERANCE} SD.",
        ),
        AnswerFigure("Best: the same" if same else "Best", format_setting(best), _facts(best), caption),
        _region_figure(lead, tables),
    ]
    warning, evidence = _describe_evidence(tables.regression, settings)
    over = next((f", {note}" for note in notes if note.startswith("over ")), "")
    remarks = [f"Predicted is the overall score{over}, in standard deviations (SD) from the mean image.", evidence]
    # Guidance cannot be lower than off.
    if "at the edge of the steps tried" in notes or (
        "at the edge of the guidance tried" in notes and not _is_off(best)
    ):
        remarks.append("The best lies at the edge of what was tried: a wider sweep may find better.")
    outside = [f"{note[0].upper()}{note[1:]}." for note in notes if note.startswith("outside the engine's range")]
    return Answer(figures, "", warning, remarks + outside + left_out)


def _is_off(spot: Row) -> bool:
    return spot["guidance"] is not None and spot["guidance"] <= 1


def _facts(spot: Row) -> list[str]:
    """Return a setting's time, and its predicted score with the band."""
    low, high = (format_number(spot[name], 2) for name in ("low", "high"))
    predicted = f"predicted {format_number(spot['predicted'], 2)} SD ({low} to {high})"
    return [*_duration(spot["seconds"]), predicted]


def _region_figure(lead: Row, tables: AnalysisTables) -> AnswerFigure:
    """Return the ranges that hold together around the lead, with the times and the lowest prediction of their cells."""
    inside = pl.col("steps").is_between(lead["steps_low"], lead["steps_high"])
    if lead["guidance"] is not None:
        inside &= pl.col("guidance").is_between(lead["guidance_low"], lead["guidance_high"])
    cells = tables.response.filter(inside, target="overall", curve="surface").drop_nulls("predicted")
    facts = []
    for row in tables.times.drop_nulls("a_step").iter_rows(named=True):
        slopes = cells["guidance"].fill_null(1).gt(1).cast(pl.Float64) * (row["guided_step"] or 0) + row["a_step"]
        facts += _duration(*_ends_of((row["base"] + cells["steps"] * slopes).clip(0)))
    if cells.height:
        least = min(float(_ends_of(cells["predicted"])[0]), lead["predicted"])
        facts.append(f"predicted {format_number(least, 2)} SD or more")
    caption = (
        "Not significantly different from the best (95 %). The whole region, bright in its plot, is "
        f"{lead['region_share']:.0%} of what was tried."
    )
    return AnswerFigure("Region: as good", format_region(lead), facts, caption)


def _ends_of(values: pl.Series) -> tuple[Any, Any]:
    return values.min(), values.max()


def _describe_evidence(regression: pl.DataFrame, settings: str) -> tuple[str, str]:
    """Return a warning where the evidence is weak, else "", and how much of each metric's variance settings explain."""
    average = {row["target"]: row for row in regression.filter(model="average").iter_rows(named=True)}
    explained = {
        metric: row["r2"] for metric, row in average.items() if metric in METRIC_LABELS and row["r2"] is not None
    }
    moving = {metric: r2 for metric, r2 in explained.items() if (average[metric]["flat_p"] or 0) < SIGNIFICANCE_LEVEL}
    flat = [METRIC_LABELS[metric] for metric in explained if metric not in moving]
    shares = join_words([f"{max(r2, 0):.0%} ({METRIC_LABELS[metric]})" for metric, r2 in moving.items()])
    nothing = f", none measurable for {join_words(flat)}" if flat else ""
    weak = max(moving.values(), default=0) < LOW_R2
    return (
        "Weak evidence, a hint and not a rule." if weak else "",
        f"{settings.capitalize()} explain {shares} of the variance{nothing}; the rest is prompt, seed and noise.",
    )


def describe_images(overall: pl.DataFrame) -> dict[str, list[str]]:
    """Return what the report is about: images, sweeps and engines, each with its lines; empty without an image."""
    if overall.is_empty():
        return {}
    prompts = overall["prompt"].drop_nulls().n_unique()
    images = format_count(overall.height, "image") + (f" of {format_count(prompts, 'prompt')}" if prompts else "")
    about = {"Images": [", ".join([images, *_describe_dates(overall)])]}
    oldest_first = overall.drop_nulls("run_id").sort("created_at", "run_id", nulls_last=True)
    sweeps = oldest_first.partition_by("run_id", maintain_order=True)
    lines = [
        ", ".join([rows["run_id"][0][:8], format_count(rows.height, "image"), *_describe_dates(rows)])
        for rows in sweeps[:SHOWN_SWEEPS]
    ]
    if len(sweeps) == 1:
        about["Sweep"] = [lines[0].partition(",")[0]]
    elif sweeps:
        rest = [f"and {len(sweeps) - SHOWN_SWEEPS} more"] if len(sweeps) > SHOWN_SWEEPS else []
        about[f"{len(sweeps)} sweeps"] = lines + rest
    engines = []
    for rows in overall.partition_by("engine", maintain_order=True):
        weights = rows["weights"].drop_nulls().unique().sort().to_list() or ["weights not recorded"]
        engines.append(f"{rows['engine'][0]} ({', '.join(weights)})")
    return about | {"Engine" if len(engines) == 1 else f"{len(engines)} engines": engines}


def _describe_dates(rows: pl.DataFrame) -> list[str]:
    """Return the day or days on which the images were made, in one item; none where that is not recorded."""
    days = [f"{end.day} {end:%B %Y}" for end in _ends_of(rows["created_at"]) if end]
    return [" to ".join(dict.fromkeys(days))] if days else []


def describe_times(times: pl.DataFrame, heaps: TimeHeaps | None) -> list[str]:
    """Say how long one engine's image takes by its steps, and where times fall in two heaps."""
    sentences = []
    for row in times.drop_nulls("a_step").head(1).iter_rows(named=True):
        sentences.append(f"An image takes {_format_times(row['base'], row['a_step'], row['guided_step'])}.")
    if heaps:
        share = f"{heaps.slow:,} of {heaps.n:,} images take {format_number(heaps.ratio)} times as long as the others"
        by = {"sweep": "by their sweep, as on two machines", "size": "by their size", "scheduler": "by their scheduler"}
        why = by.get(heaps.by or "", "as on two machines, but not by their sweep, size or scheduler")
        sentences.append(f"Times fall in two heaps: {share}, {why}.")
        for name, model in list(heaps.models.items())[:SHOWN_SWEEPS]:
            label = name[:8] if heaps.by == "sweep" else name
            sentences.append(f"{label}: {_format_times(*model.coefficients)}.")
    return sentences


def _format_times(base: float, a_step: float, guided_step: float | None) -> str:
    guided = f" ({_format_seconds(a_step + guided_step)} with guidance)" if guided_step else ""
    return f"{_format_seconds(max(base, 0))} and {_format_seconds(a_step)} a step{guided}"


def _format_seconds(seconds: float) -> str:
    """Return a duration with three digits, in milliseconds below one second."""
    return f"{format_number(seconds)} s" if seconds >= 1 else f"{format_number(1000 * seconds)} ms"


def list_shortfalls(
    scores: pl.DataFrame, overall: pl.DataFrame, correlations: pl.DataFrame, regression: pl.DataFrame
) -> list[str]:
    """Return one sentence for each thing that could not be computed, with its reason.

    `scores` are unfiltered, `overall` are those of `add_overall`; the tables are those of `analysis`.
    """
    sentences = [
        f"{count:,} of {scores.height:,} values of {METRIC_LABELS[metric]} are NaN or infinite, and count as missing."
        for metric, count in failed_images(scores).items()
        if count
    ]
    if overall.is_empty():
        return [*sentences, "Nothing could be fitted, correlated or shown: there is no image."]
    complete = overall.drop_nulls(METRIC_LABELS).height
    if complete < overall.height:
        images = "No image has" if not complete else f"{complete:,} of {overall.height:,} images have"
        sentences.append(f"{images} all {len(METRIC_LABELS)} scores; each result uses those with the scores it needs.")
    several = overall["engine"].n_unique() > 1
    for rows in overall.partition_by("engine", maintain_order=True):
        name = rows["engine"][0]
        of_engine = pl.col("engine") == name
        for sentence in _engine_shortfalls(rows, correlations.filter(of_engine), regression.filter(of_engine)):
            sentences.append(f"{name}: {sentence}" if several else sentence[0].upper() + sentence[1:])
    return sentences


def _engine_shortfalls(rows: pl.DataFrame, correlations: pl.DataFrame, regression: pl.DataFrame) -> Iterator[str]:
    for setting in setting_names(rows):
        values = rows[setting].drop_nulls().unique()
        if values.is_empty():
            yield f"no image has {setting}: the effect of {setting} is unknown, and no plot by {setting} is drawn."
        elif len(values) == 1:
            yield f"{setting} never varies (always {values[0]:g}): its effect is unknown, and no surface is drawn."
    for metric, label in METRIC_LABELS.items():
        if rows[metric].count() and rows[metric].n_unique() - (rows[metric].null_count() > 0) == 1:
            value = format_number(rows[metric].drop_nulls()[0])
            yield f"{label} is the same for every image ({value}): it ranks no image."
    unfitted = regression.filter(pl.col("r2").is_null(), pl.col("target").is_in(list(METRIC_LABELS)), model="average")
    for reason, metrics in _by_note(unfitted, "target").items():
        yield f"no model of {join_words(metrics)}, and no sweet spot: {reason}."
    uncorrelated = correlations.filter(pl.col("spearman").is_null())
    for reason, lefts in _by_note(uncorrelated, "left").items():
        yield f"{len(lefts)} of {correlations.height} correlations could not be computed: {reason}."


def _by_note(rows: pl.DataFrame, column: str) -> dict[str, list[str]]:
    """Return the labels of the column's names, grouped by the note of their rows."""
    labels = METRIC_LABELS | SETTING_LABELS
    notes = rows.with_columns(pl.col("note").replace("", None).fill_null("no reason is recorded"))
    grouped = notes.group_by("note", maintain_order=True).agg(column)
    return {note: [labels[name] for name in names] for note, names in grouped.iter_rows()}


def describe_front(front: pl.DataFrame, spots: pl.DataFrame) -> str:
    """Describe the two ends of one engine's front of overall quality against time, or say why there is none."""
    overall = front.filter(target="overall")
    on = overall.filter("on_front")
    if on.is_empty():
        reason = next(iter(overall["note"].drop_nulls()), "nothing could be fitted")
        return f"No front of quality against time: {reason}."
    if not spots.filter(target="overall")["steps"].count():
        return "Overall quality shows no significant dependence: no setting is worth more seconds than the quickest."
    quick, best = on.row(0, named=True), on.row(-1, named=True)
    if on.height == 1:
        return f"{format_setting(best)} is both the quickest and the best: more time gains nothing."
    quickest, highest = (
        ", ".join([format_setting(row), *_duration(row["seconds"]), f"{format_number(row['predicted'], 2)} SD"])
        for row in (quick, best)
    )
    return (
        f"Of the settings that no other beats in both quality and time, the quickest is {quickest}, and the highest "
        f"prediction has {highest}. They are on the front in {quick['front_probability']:.0%} and "
        f"{best['front_probability']:.0%} of resamples."
    )


EFFECT_NAMES: Final[Mapping[str, tuple[str, str, str]]] = {
    "steps": ("more raise it", "more lower it", "non-monotonic"),
    "guidance": ("more raises it", "more lowers it", "non-monotonic"),
    "interaction": (
        *("steps do more at high guidance", "steps do less at high guidance"),
        "the effect of steps depends on guidance",
    ),
}
"""The words for a significant effect that is above 0, below 0 or neither."""


def format_effects(effects: pl.DataFrame, guided: bool) -> tuple[dict[str, str], list[Row]]:
    """Return a heading for each of one engine's effects, and a row per target with a cell for each effect."""
    known = effects.drop_nulls("change")
    heads = {}
    for effect, title in (("steps", "Steps"), ("guidance", "Guidance"), ("interaction", "Gain of steps")):
        rows_of_effect = known.filter(effect=effect).to_dicts()
        if rows_of_effect and (guided or effect == "steps"):
            ends = {_ends(row, effect) for row in rows_of_effect}
            heads[effect] = title + (f", {ends.pop()}" if len(ends) == 1 else "")
    rows = []
    for (target,), of_target in known.group_by("target", maintain_order=True):
        by_effect = {row["effect"]: row for row in of_target.iter_rows(named=True)}
        cells = [_effect(by_effect[effect]) if effect in by_effect else None for effect in heads]
        rows.append({"label": TARGET_LABELS[str(target)], "unit": " SD" if target == "overall" else "", "cells": cells})
    return heads, rows


def _ends(row: Row, effect: str) -> str:
    if effect == "interaction":
        return "high guidance against low"
    return f"{row[f'{effect}_from']:g} to {row[f'{effect}_to']:g}"


def _effect(row: Row) -> Row:
    up, down, bent = EFFECT_NAMES[row["effect"]]
    significant = row["p"] is not None and row["p"] < SIGNIFICANCE_LEVEL
    words = up if row["low"] > 0 else down if row["high"] < 0 else bent
    p = None if row["p"] is None else "p ≤ 0.001" if row["p"] <= 0.001 else f"p = {row['p']:.3f}"
    return row | {"words": words if significant else "not significant", "p": p, "significant": significant}


def describe_components(components: pl.DataFrame) -> str:
    """Say how many principal components explain most of one engine's metrics, or why that is unknown."""
    known = components.drop_nulls("share").sort("component").to_dicts()
    if not known:
        reason = next(iter(components["note"]), None) or "no image"
        return f"The principal components of the metrics are unknown: {reason}."
    totals = list(accumulate(row["share"] for row in known))
    count = next((number for number, total in enumerate(totals, 1) if total >= LARGE_SHARE), len(known))
    descriptions = [
        f"{row['share']:.0%} ({row['share_low']:.0%} to {row['share_high']:.0%}) is mostly {describe_loadings(row)}"
        for row in known[:count]
    ]
    share = f"{count} of {len(known)} principal components explain {totals[count - 1]:.0%} of the metrics’ variance"
    return f"{share}: {'; '.join(descriptions)}."


def describe_loadings(component: Row) -> str:
    """Name the metrics that a component is most correlated with."""
    strong = [loading for loading in component["loadings"] if abs(loading["loading"]) >= STRONG_CORRELATION]
    together, against = (
        join_words([METRIC_LABELS[each["metric"]] for each in strong if (each["loading"] > 0) == positive])
        for positive in (True, False)
    )
    return f"{together} against {against}" if against and together else together or against or "a little of each"


def _duration(*seconds: float | None) -> list[str]:
    """Return the seconds of an image, or from the least to the most, in one item; none where they are not known."""
    known = dict.fromkeys(format_number(each, 2) for each in seconds if each is not None)
    return [f"{' to '.join(known)} s an image"] if known else []


def format_region(spot: Row) -> str:
    """Return the ranges of the settings not significantly different from a spot's, in words."""
    guidance = format_guidance_range(spot)
    steps = format_span(f"{spot['steps_low']}", f"{spot['steps_high']}")
    return f"{steps} steps" + (f" and guidance {guidance}" if guidance else "")


def format_guidance_range(spot: Row) -> str:
    if spot["guidance"] is None:
        return ""
    return format_span(format_guidance(spot["guidance_low"]), format_guidance(spot["guidance_high"]))


def format_span(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"
