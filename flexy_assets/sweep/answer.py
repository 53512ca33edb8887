"""The report in words: what to use and how far to trust it, what could not be done and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import polars as pl
from markupsafe import Markup

from flexy_assets.page import listed, number
from flexy_assets.sweep.analysis import METRICS, SETTINGS, VALUE_TOLERANCE, tried
from flexy_assets.sweep.points import raw_failures

WEAK_R2: Final = 0.1
"""Below this share of the variance explained, advice is called a hint (a correlation of about 0.3)."""

Row = dict[str, Any]


def answer(spots: pl.DataFrame, regression: pl.DataFrame, settings: str) -> list[Markup]:
    """Two to four sentences: what to use, what to use in a hurry, and how far to trust it."""
    rows = {row["target"]: row for row in spots.iter_rows(named=True)}
    chosen = {row["metric"]: row for row in regression.filter("chosen").iter_rows(named=True)}
    best, value = rows.get("overall"), rows.get("value")
    tested = [metric for metric, row in chosen.items() if row["r2"] is not None]
    if best is None or value is None or best["steps"] is None:
        if not tested:
            return [Markup("<strong>No advice yet:</strong> there are too few scored images, or all score alike.")]
        names = listed([METRICS[metric] for metric in tested])
        return [
            Markup(
                "<strong>No setting stands out.</strong> {} cannot be told from flat over the {} "
                "tried: as far as these images can tell, the quickest setting is as good as any."
            ).format(names, settings)
        ]
    said = [
        Markup("Best overall: <strong>{}</strong>{}; by {} images it cannot be told from others within {}.").format(
            setting(best), _at(best["seconds"]), f"{best['n']:,}", between(best)
        )
    ]
    if (value["steps"], value["guidance"]) == (best["steps"], best["guidance"]):
        said.append(Markup("Nothing quicker comes within {} SD of it.").format(VALUE_TOLERANCE))
    else:
        saved = 1 - value["seconds"] / best["seconds"] if value["seconds"] and best["seconds"] else None
        said.append(
            Markup("Best value: <strong>{}</strong>{}{}, within {} SD of the best.").format(
                setting(value),
                _at(value["seconds"]),
                f", {saved:.0%} less time" if saved else "",
                VALUE_TOLERANCE,
            )
        )
    moving = {metric: row["r2"] for metric, row in chosen.items() if row["model"] != "mean"}
    flat = [METRICS[metric] for metric in tested if metric not in moving]
    shares = listed([f"{max(r2, 0):.0%} ({METRICS[metric]})" for metric, r2 in moving.items()])
    weak = max(moving.values(), default=0) < WEAK_R2
    said.append(
        Markup("{}{} explain {} of the variance{}; the rest is prompt, seed and noise.").format(
            Markup("<strong>Weak evidence, a hint and not a rule.</strong> ") if weak else "",
            settings.capitalize(),
            shares,
            f", none measurable for {listed(flat)}" if flat else "",
        )
    )
    note, off = best["note"] or "", best["guidance"] is not None and best["guidance"] <= 1
    # Guidance cannot be lower than off.
    if "edge of the steps" in note or ("edge of the guidance" in note and not off):
        said.append(Markup("The best lies at the edge of what was tried: a wider sweep may find better."))
    return said


def shortfalls(
    scores: pl.DataFrame, overall: pl.DataFrame, correlations: pl.DataFrame, regression: pl.DataFrame
) -> list[str]:
    """One sentence for everything that could not be done, with its reason.

    `scores` are as they came, `overall` as `with_overall` has them; the tables are those of `analysis`.
    """
    said = [
        f"{count:,} of {scores.height:,} values of {METRICS[metric]} are NaN or infinite, and count as missing."
        for metric, count in raw_failures(scores).items()
        if count
    ]
    if overall.is_empty():
        return [*said, "Nothing could be fitted, correlated or shown: there is no image."]
    complete = overall.drop_nulls(METRICS).height
    if complete < overall.height:
        none = "No image has" if not complete else f"{complete:,} of {overall.height:,} images have"
        said.append(f"{none} all {len(METRICS)} scores; each figure rests on the images that have what it needs.")
    several = overall["engine"].n_unique() > 1
    for rows in overall.partition_by("engine", maintain_order=True):
        name = rows["engine"][0]
        of_engine = pl.col("engine") == name
        for sentence in _of_engine(rows, correlations.filter(of_engine), regression.filter(of_engine)):
            said.append(f"{name}: {sentence}" if several else sentence[0].upper() + sentence[1:])
    return said


def _of_engine(rows: pl.DataFrame, correlations: pl.DataFrame, regression: pl.DataFrame) -> Iterator[str]:
    for setting in tried(rows):
        values = rows[setting].drop_nulls().unique()
        if values.is_empty():
            yield f"no image has {setting}, so nothing can be said of them, and no plot by {setting} is drawn."
        elif len(values) == 1:
            yield f"{setting} never varies (always {values[0]:g}): its effect cannot be told, and no surface is drawn."
    for metric, label in METRICS.items():
        if rows[metric].count() and rows[metric].n_unique() - (rows[metric].null_count() > 0) == 1:
            yield f"{label} is the same for every image ({number(rows[metric].drop_nulls()[0])}): it ranks nothing."
    unfitted = regression.filter(pl.col("chosen") & pl.col("r2").is_null())
    for reason, metrics in _by_note(unfitted, "metric").items():
        yield f"no model of {listed(metrics)}, and no sweet spot: {reason}."
    uncorrelated = correlations.filter(pl.col("spearman").is_null())
    for reason, lefts in _by_note(uncorrelated, "left").items():
        yield f"{len(lefts)} of {correlations.height} correlations could not be computed: {reason}."


def _by_note(rows: pl.DataFrame, column: str) -> dict[str, list[str]]:
    """The column's names in words, by the reason their rows give."""
    labels: Mapping[str, str] = METRICS | SETTINGS
    found: dict[str, list[str]] = {}
    for row in rows.iter_rows(named=True):
        found.setdefault(row["note"] or "no reason is given", []).append(labels[row[column]])
    return found


def guidance_words(value: float | None) -> str:
    """A guidance as it is shown; diffusers switches it off at 1 and below."""
    return "–" if value is None else "1 (off)" if value <= 1 else f"{value:.1f}"


def _at(seconds: float | None) -> str:
    return "" if seconds is None else f", about {number(seconds, 2)} s an image"


def setting(spot: Row) -> str:
    guidance = "" if spot["guidance"] is None else f" at guidance {guidance_words(spot['guidance'])}"
    return f"{spot['steps']} steps{guidance}"


def between(spot: Row) -> str:
    """How far the settings reach that cannot be told from a spot, in words."""
    guidance = guidance_range(spot)
    steps = span(f"{spot['steps_low']}", f"{spot['steps_high']}")
    return f"{steps} steps" + (f" and guidance {guidance}" if guidance else "")


def guidance_range(spot: Row) -> str:
    if spot["guidance"] is None:
        return ""
    return span(f"{spot['guidance_low']:.1f}", f"{spot['guidance_high']:.1f}")


def span(low: str, high: str) -> str:
    return low if low == high else f"{low}–{high}"
