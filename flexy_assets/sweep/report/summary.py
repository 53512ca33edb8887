"""The report's sentences: the recommended settings with their uncertainty, and what could not be computed."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

import polars as pl
from markupsafe import Markup

from flexy_assets.reporting.formatting import format_number, join_words
from flexy_assets.sweep.analysis import METRIC_LABELS, SETTING_LABELS, TARGET_LABELS, VALUE_TOLERANCE, setting_names
from flexy_assets.sweep.plots import format_setting
from flexy_assets.sweep.report.points import failed_images

LOW_R2: Final = 0.1
"""Below this share of the variance explained (a correlation of about 0.3), the evidence is called weak."""

SIGNIFICANCE_LEVEL: Final = 0.05
"""An effect is significant if its probability by chance is below."""
LARGE_SHARE: Final = 0.9
"""Of the metrics' variance, which the components that are described explain together."""
STRONG_CORRELATION: Final = 0.5
"""A component is described by the metrics whose correlation with it is at least so large."""

Row = dict[str, Any]


def summarize_sweep(spots: pl.DataFrame, regression: pl.DataFrame, settings: str) -> list[Markup]:
    """Return the answer in sentences: the setting to use, the best, what is as good, and the strength of the evidence.

    Where the images cannot carry an answer, the first says so and why.
    """
    rows = {row["target"]: row for row in spots.iter_rows(named=True)}
    average = {row["target"]: row for row in regression.filter(model="average").iter_rows(named=True)}
    best, lead = rows.get("overall"), rows.get("value")
    if best is None or lead is None:
        return [Markup("<strong>No setting is named:</strong> there is no image.")]
    left_out = [Markup("{}.").format(note) for note in (best["note"] or "").split("; ") if "is left out: " in note]
    if best["steps"] is None:
        text = Markup("<strong>No setting is named:</strong> {}.")
        return [text.format(best["reason"] or "nothing could be fitted"), *left_out]
    text = Markup("Use <strong>{}</strong>{}: the quickest setting as good as the best ({:,} images, within {} SD).")
    sentences = [text.format(format_setting(lead), _duration(lead["seconds"]), lead["n"], VALUE_TOLERANCE)]
    if (lead["steps"], lead["guidance"]) == (best["steps"], best["guidance"]):
        sentences.append(Markup("It is also the best."))
    else:
        sentences.append(
            Markup("The best is <strong>{}</strong>{}, expected {} SD better (95 %: at most {}).").format(
                format_setting(best),
                _duration(best["seconds"]),
                *(format_number(max(lead[name], 0), 2) for name in ("loss", "loss_high")),
            )
        )
    text = Markup("Not significantly different: all of {}; in all {:.0%} of what was tried (95 %).")
    sentences.append(text.format(format_region(lead), lead["region_share"]))
    explained = {
        metric: row["r2"] for metric, row in average.items() if metric in METRIC_LABELS and row["r2"] is not None
    }
    moving = {metric: r2 for metric, r2 in explained.items() if (average[metric]["flat_p"] or 0) < SIGNIFICANCE_LEVEL}
    flat = [METRIC_LABELS[metric] for metric in explained if metric not in moving]
    shares = join_words([f"{max(r2, 0):.0%} ({METRIC_LABELS[metric]})" for metric, r2 in moving.items()])
    weak = max(moving.values(), default=0) < LOW_R2
    sentences.append(
        Markup("{}{} explain {} of the variance{}; the rest is prompt, seed and noise.").format(
            Markup("<strong>Weak evidence, a hint and not a rule.</strong> ") if weak else "",
            settings.capitalize(),
            shares,
            f", none measurable for {join_words(flat)}" if flat else "",
        )
    )
    note, off = best["note"] or "", best["guidance"] is not None and best["guidance"] <= 1
    # Guidance cannot be lower than off.
    if "edge of the steps" in note or ("edge of the guidance" in note and not off):
        sentences.append(Markup("The best lies at the edge of what was tried: a wider sweep may find better."))
    outside = [part for part in note.split("; ") if part.startswith("outside the engine's range")]
    return sentences + [Markup("{}.").format(part.capitalize()) for part in outside] + left_out


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
        f"{format_setting(row)}{_duration(row['seconds'])}, {format_number(row['predicted'], 2)} SD"
        for row in (quick, best)
    )
    return (
        f"Of the settings that no other beats in both quality and time, the quickest is {quickest}, and the best "
        f"{highest}. They are on the front in {quick['front_probability']:.0%} and "
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


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f", about {format_number(seconds, 2)} s an image"


def format_region(spot: Row) -> str:
    """Return the ranges of the settings not significantly different from a spot's, in words."""
    guidance = format_guidance_range(spot)
    steps = format_span(f"{spot['steps_low']}", f"{spot['steps_high']}")
    return f"{steps} steps" + (f" and guidance {guidance}" if guidance else "")


def format_guidance_range(spot: Row) -> str:
    if spot["guidance"] is None:
        return ""
    return format_span(f"{spot['guidance_low']:.1f}", f"{spot['guidance_high']:.1f}")


def format_span(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"
