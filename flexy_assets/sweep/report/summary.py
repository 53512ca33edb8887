"""The report in words: what to use and how far to trust it, what could not be done and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import polars as pl
from markupsafe import Markup

from flexy_assets.reporting.formatting import format_number, join_words
from flexy_assets.sweep.analysis import METRIC_LABELS, SETTING_LABELS, TARGET_LABELS, VALUE_TOLERANCE, tried_images
from flexy_assets.sweep.plots import format_setting
from flexy_assets.sweep.report.points import failed_images

LOW_R2: Final = 0.1
"""Below this share of the variance explained, advice is called a hint (a correlation of about 0.3)."""

MIN_PROBABILITY: Final = 0.05
"""The probability by chance from which on an effect is not one."""
LARGE_SHARE: Final = 0.9
"""Of the metrics' variance: directions that together hold less are not all there is."""
STRONG_CORRELATION: Final = 0.5
"""A correlation with a component from which on a metric is named for it."""

Row = dict[str, Any]


def summarize_sweep(spots: pl.DataFrame, regression: pl.DataFrame, settings: str) -> list[Markup]:
    """Two to four sentences: what to use, what to use in a hurry, and how far to trust it."""
    rows = {row["target"]: row for row in spots.iter_rows(named=True)}
    chosen = {row["metric"]: row for row in regression.filter("chosen").iter_rows(named=True)}
    best, value = rows.get("overall"), rows.get("value")
    tested = [metric for metric, row in chosen.items() if row["r2"] is not None]
    if best is None or value is None or best["steps"] is None:
        if not tested:
            return [Markup("<strong>No advice yet:</strong> there are too few scored images, or all score alike.")]
        names = join_words([METRIC_LABELS[metric] for metric in tested])
        return [
            Markup(
                "<strong>No setting stands out.</strong> {} cannot be told from flat over the {} "
                "tried: as far as these images can tell, the quickest setting is as good as any."
            ).format(names, settings)
        ]
    said = [
        Markup("Best overall: <strong>{}</strong>{}; {} images cannot tell it from others within {}{}.").format(
            format_setting(best), _at(best["seconds"]), f"{best['n']:,}", format_between(best), _share(best)
        )
    ]
    if (value["steps"], value["guidance"]) == (best["steps"], best["guidance"]):
        said.append(Markup("Nothing quicker comes within {} SD of it.").format(VALUE_TOLERANCE))
    else:
        saved = 1 - value["seconds"] / best["seconds"] if value["seconds"] and best["seconds"] else None
        said.append(
            Markup("Best value: <strong>{}</strong>{}{}, expected within {} SD of the best{}.").format(
                format_setting(value),
                _at(value["seconds"]),
                f", {saved:.0%} less time" if saved else "",
                VALUE_TOLERANCE,
                f" (at most {format_number(value['loss_high'], 2)} below)" if value["loss_high"] is not None else "",
            )
        )
    moving = {metric: row["r2"] for metric, row in chosen.items() if row["model"] != "mean"}
    flat = [METRIC_LABELS[metric] for metric in tested if metric not in moving]
    shares = join_words([f"{max(r2, 0):.0%} ({METRIC_LABELS[metric]})" for metric, r2 in moving.items()])
    weak = max(moving.values(), default=0) < LOW_R2
    said.append(
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
        said.append(Markup("The best lies at the edge of what was tried: a wider sweep may find better."))
    return said


def list_shortfalls(
    scores: pl.DataFrame, overall: pl.DataFrame, correlations: pl.DataFrame, regression: pl.DataFrame
) -> list[str]:
    """One sentence for everything that could not be done, with its reason.

    `scores` are as they came, `overall` as `with_overall` has them; the tables are those of `analysis`.
    """
    said = [
        f"{count:,} of {scores.height:,} values of {METRIC_LABELS[metric]} are NaN or infinite, and count as missing."
        for metric, count in failed_images(scores).items()
        if count
    ]
    if overall.is_empty():
        return [*said, "Nothing could be fitted, correlated or shown: there is no image."]
    complete = overall.drop_nulls(METRIC_LABELS).height
    if complete < overall.height:
        none = "No image has" if not complete else f"{complete:,} of {overall.height:,} images have"
        said.append(f"{none} all {len(METRIC_LABELS)} scores; each figure rests on the images that have what it needs.")
    several = overall["engine"].n_unique() > 1
    for rows in overall.partition_by("engine", maintain_order=True):
        name = rows["engine"][0]
        of_engine = pl.col("engine") == name
        for sentence in _of_engine(rows, correlations.filter(of_engine), regression.filter(of_engine)):
            said.append(f"{name}: {sentence}" if several else sentence[0].upper() + sentence[1:])
    return said


def _of_engine(rows: pl.DataFrame, correlations: pl.DataFrame, regression: pl.DataFrame) -> Iterator[str]:
    for setting in tried_images(rows):
        values = rows[setting].drop_nulls().unique()
        if values.is_empty():
            yield f"no image has {setting}, so nothing can be said of them, and no plot by {setting} is drawn."
        elif len(values) == 1:
            yield f"{setting} never varies (always {values[0]:g}): its effect cannot be told, and no surface is drawn."
    for metric, label in METRIC_LABELS.items():
        if rows[metric].count() and rows[metric].n_unique() - (rows[metric].null_count() > 0) == 1:
            value = format_number(rows[metric].drop_nulls()[0])
            yield f"{label} is the same for every image ({value}): it ranks nothing."
    unfitted = regression.filter(pl.col("chosen") & pl.col("r2").is_null())
    for reason, metrics in _by_note(unfitted, "metric").items():
        yield f"no model of {join_words(metrics)}, and no sweet spot: {reason}."
    uncorrelated = correlations.filter(pl.col("spearman").is_null())
    for reason, lefts in _by_note(uncorrelated, "left").items():
        yield f"{len(lefts)} of {correlations.height} correlations could not be computed: {reason}."


def _by_note(rows: pl.DataFrame, column: str) -> dict[str, list[str]]:
    """The column's names in words, by the reason their rows give."""
    labels: Mapping[str, str] = METRIC_LABELS | SETTING_LABELS
    found: dict[str, list[str]] = {}
    for row in rows.iter_rows(named=True):
        found.setdefault(row["note"] or "no reason is given", []).append(labels[row[column]])
    return found


def describe_front(front: pl.DataFrame, moves: bool) -> str:
    """The two ends of one engine's front of overall quality against time, or why there is none."""
    overall = front.filter(target="overall")
    on = overall.filter("on_front")
    if on.is_empty():
        reason = next(iter(overall["note"].drop_nulls()), "nothing could be fitted")
        return f"No front of quality against time: {reason}."
    if not moves:
        return "Overall quality cannot be told from flat: no setting is worth more seconds than the quickest."
    quick, best = on.row(0, named=True), on.row(-1, named=True)
    if on.height == 1:
        return f"{format_setting(best)} is both the quickest and the best: nothing is gained by waiting longer."
    ends = [
        f"{format_setting(row)}{_at(row['seconds'])}, {format_number(row['predicted'], 2)} SD" for row in (quick, best)
    ]
    return (
        f"Of the settings that no other beats in both quality and time, the quickest is {ends[0]}, and the best "
        f"{ends[1]}. When the images are resampled, these stay unbeaten in {quick['stays']:.0%} and "
        f"{best['stays']:.0%} of cases."
    )


EFFECT_NAMES: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "steps": ("more raise it", "more lower it", "it moves, not one way", "no effect can be told"),
    "guidance": ("more raises it", "more lowers it", "it moves, not one way", "no effect can be told"),
    "interaction": (
        "steps do more at high guidance",
        "steps do less at high guidance",
        "what steps do depends on guidance",
        "none can be told",
    ),
}
"""What an effect is called that is above 0, below 0, there but neither, or cannot be told."""


def format_effects(effects: pl.DataFrame, guided: bool) -> tuple[dict[str, str], list[Row]]:
    """One engine's effects in words: a heading for each effect, and a row a target with a cell for each."""
    there = effects.drop_nulls("change")
    heads = {}
    for effect, title in (("steps", "Steps"), ("guidance", "Guidance"), ("interaction", "Gain of steps")):
        found = there.filter(effect=effect).to_dicts()
        if found and (guided or effect == "steps"):
            ends = {_ends(row, effect) for row in found}
            heads[effect] = title + (f", {ends.pop()}" if len(ends) == 1 else "")
    rows = []
    for (target,), of_target in there.group_by("target", maintain_order=True):
        by_effect = {row["effect"]: row for row in of_target.iter_rows(named=True)}
        cells = [_effect(by_effect[effect]) if effect in by_effect else None for effect in heads]
        rows.append({"label": TARGET_LABELS[str(target)], "unit": " SD" if target == "overall" else "", "cells": cells})
    return heads, rows


def _ends(row: Row, effect: str) -> str:
    if effect == "interaction":
        return "high guidance against low"
    return f"{row[f'{effect}_from']:g} to {row[f'{effect}_to']:g}"


def _effect(row: Row) -> Row:
    up, down, bent, none = EFFECT_NAMES[row["effect"]]
    words = (
        none
        if row["p"] is None or row["p"] >= MIN_PROBABILITY
        else up
        if row["low"] > 0
        else down
        if row["high"] < 0
        else bent
    )
    p = None if row["p"] is None else "p ≤ 0.001" if row["p"] <= 0.001 else f"p = {row['p']:.3f}"
    return row | {"words": words, "p": p, "sure": words != none}


def describe_components(components: pl.DataFrame) -> str:
    """How many different things the metrics of one engine measure, or why that cannot be said."""
    known = components.drop_nulls("share").sort("component").to_dicts()
    if not known:
        reason = next(iter(components["note"]), None) or "no image"
        return f"How many different things the metrics measure cannot be said: {reason}."
    held, count = 0.0, 0
    while held < LARGE_SHARE and count < len(known):
        held += known[count]["share"]
        count += 1
    things = [
        f"{row['share']:.0%} ({row['share_low']:.0%} to {row['share_high']:.0%}) is mostly {describe_loadings(row)}"
        for row in known[:count]
    ]
    return f"{count} of {len(known)} directions hold {held:.0%} of what the metrics tell apart: {'; '.join(things)}."


def describe_loadings(component: Row) -> str:
    """A component by the metrics that have most to do with it."""
    strong = [loading for loading in component["loadings"] if abs(loading["loading"]) >= STRONG_CORRELATION]
    together, against = (
        join_words([METRIC_LABELS[one["metric"]] for one in strong if (one["loading"] > 0) == positive])
        for positive in (True, False)
    )
    return f"{together} against {against}" if against and together else together or against or "a little of each"


def _at(seconds: float | None) -> str:
    return "" if seconds is None else f", about {format_number(seconds, 2)} s an image"


def _share(spot: Row) -> str:
    return "" if spot["region_share"] is None else f" ({spot['region_share']:.0%} of what was tried)"


def format_between(spot: Row) -> str:
    """How far the settings reach that cannot be told from a spot, in words."""
    guidance = format_guidance_range(spot)
    steps = format_span(f"{spot['steps_low']}", f"{spot['steps_high']}")
    return f"{steps} steps" + (f" and guidance {guidance}" if guidance else "")


def format_guidance_range(spot: Row) -> str:
    if spot["guidance"] is None:
        return ""
    return format_span(f"{spot['guidance_low']:.1f}", f"{spot['guidance_high']:.1f}")


def format_span(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"
