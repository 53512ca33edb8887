"""What a comparison says, in a few sentences, and how sure that is.

Only metrics that had no part in choosing are evidence: the truth where it is known, or else held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import polars as pl
from markupsafe import Markup

from flexy_assets.edits.labels import format_denoises, method_name, metric_label
from flexy_assets.reporting.formatting import format_count, format_number, format_signed, join_words

MIN_TASKS: Final = 10
"""Below so many tasks nothing is said to be better: a bootstrap of fewer is too sure of itself."""

Row = dict[str, Any]
"""A row of `comparison.COMPARISON`."""
EditVerdict = Literal["ahead", "behind", "open", "unsaid"]


@dataclass(frozen=True)
class Pair:
    """A method at its budget against a rival at its own, both in denoising steps (NFE)."""

    method: str
    budget: int
    rival: str
    rival_budget: int

    @property
    def equal(self) -> bool:
        return self.budget == self.rival_budget

    @property
    def sides(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return (self.method, self.budget), (self.rival, self.rival_budget)

    def rows(self, comparison: pl.DataFrame) -> list[Row]:
        """What was compared of this pair, a row a metric."""
        return comparison.filter(**asdict(self)).to_dicts()


def method_pairs(comparison: pl.DataFrame) -> list[Pair]:
    """Every pair, the one that the answer is about first.

    That is of the two methods that come first, at their largest equal budget, or if there is none at the largest.
    """
    sides = comparison.select("method", "budget", "rival", "rival_budget").unique(maintain_order=True)
    found = [Pair(*row) for row in sides.iter_rows()]

    def rank(pair: Pair) -> tuple[bool, bool, int, int]:
        return (
            (pair.method, pair.rival) == (found[0].method, found[0].rival),
            pair.equal,
            pair.rival_budget,
            pair.budget,
        )

    return sorted(found, key=rank, reverse=True)


def decisive_row(rows: Sequence[Row]) -> Row | None:
    """The row that decides: the truth's, or else that of the first metric that had no part in choosing."""
    evidence = [row for row in rows if row["role"] != "selecting" and row["n"]]
    return min(evidence, key=lambda row: (row["metric"] != "truth", row["role"] != "truth"), default=None)


def edit_verdict(row: Row) -> EditVerdict:
    """Whether the method is better, worse, not shown to be either, or too few tasks were compared to say so."""
    if row["gain_low"] is None or row["n"] < MIN_TASKS:
        return "unsaid"
    return "ahead" if row["gain_low"] > 0 else "behind" if row["gain_high"] < 0 else "open"


def format_gain(row: Row) -> list[str]:
    """A gain and the ends of its interval in words; without the ends, or without either, where there are none."""
    known = [row[name] for name in ("gain", "gain_low", "gain_high") if row[name] is not None]
    return format_signed(known) if known else []


def mean_score(levels: pl.DataFrame, metric: str, method: str, budget: int) -> float | None:
    """A method's mean at a budget (`comparison.LEVELS`), if it was measured."""
    found = levels.filter(metric=metric, method=method, budget=budget)["mean"]
    return found[0] if len(found) else None


def summarize_comparison(
    candidates: pl.DataFrame, comparison: pl.DataFrame, levels: pl.DataFrame, steps: int | None
) -> list[Markup]:
    """Whose edits are better, by what that is said, and whether a smaller budget is enough.

    `candidates` are the report's; `steps` are those of a full denoise, None where they are not all alike.
    """
    if comparison.is_empty():
        return [Markup("<strong>Nothing can be said yet:</strong> no task has been compared.")]
    headline, *rest = method_pairs(comparison)
    rows = headline.rows(comparison)
    lead = decisive_row(rows)
    ours, theirs = method_name(headline.method), method_name(headline.rival)
    if lead is None:
        text = Markup("<strong>It cannot be said whose edits are better, {}’s or {}’s:</strong> {}.")
        return [text.format(ours, theirs, "no task has both values of a metric that had no part in choosing")]
    said = [_claim(headline, lead, levels, steps)]
    if lead["role"] == "truth" and (shares := _carried_out_and_preserved(candidates, headline)):
        text = Markup("{}’s edits carry out the instruction and keep the rest in {:.0%} of tasks, {}’s in {:.0%}.")
        said.append(text.format(ours, shares[0], theirs, shares[1]))
    others = [row for row in rows if row["role"] != "selecting" and row["n"] and row is not lead]
    if others:
        said.append(_others(others, ours, theirs))
    for pair in rest:
        if not pair.equal and pair.sides[1] == headline.sides[1] and pair.method == headline.method:
            row = next((row for row in pair.rows(comparison) if row["metric"] == lead["metric"] and row["n"]), None)
            said += [_unequal(pair, row, steps)] if row else []
    return said


def _claim(pair: Pair, lead: Row, levels: pl.DataFrame, steps: int | None) -> Markup:
    ours, theirs = method_name(pair.method), method_name(pair.rival)
    found = edit_verdict(lead)
    few = f"{format_count(lead['n'], 'task')} {'is' if lead['n'] == 1 else 'are'} too few"
    claim = {
        "ahead": f"{ours}’s edits are better than {theirs}’s",
        "behind": f"{theirs}’s edits are better than {ours}’s",
        "open": f"it is not shown whose edits are better, {ours}’s or {theirs}’s",
        "unsaid": f"it cannot be said whose edits are better, {ours}’s or {theirs}’s: {few}",
    }[found]
    means = [mean_score(levels, lead["metric"], *side) for side in pair.sides]
    return Markup("<strong>At {}{} {}.</strong> By {}{}: {}{}{} over {}; {:,} won, {:,} tied, {:,} lost.").format(
        format_denoises(pair.budget, steps),
        "" if pair.equal else f" against {format_denoises(pair.rival_budget, steps)}",
        claim,
        "the truth" if lead["metric"] == "truth" else metric_label(lead["metric"]),
        ", which had no part in choosing" if lead["role"] == "held-out" else "",
        "" if None in means else f"{format_number(means[0])} against {format_number(means[1])}, ",
        _with_interval(lead),
        ", which includes 0," if found == "open" else "",
        format_count(lead["n"], "task"),
        lead["wins"],
        lead["ties"],
        lead["losses"],
    )


def _others(rows: Sequence[Row], ours: str, theirs: str) -> Markup:
    beginnings: dict[EditVerdict, str] = {
        "ahead": f"{ours} is ahead by",
        "behind": f"{theirs} is ahead by",
        "open": "no difference is shown by",
        "unsaid": "too few tasks have",
    }
    by = {
        each: join_words([metric_label(row["metric"]) for row in rows if edit_verdict(row) == each])
        for each in beginnings
    }
    words = "; ".join(f"{beginning} {by[each]}" for each, beginning in beginnings.items() if by[each])
    return Markup("Of what else had no part in choosing: {}.").format(words)


def _unequal(pair: Pair, row: Row, steps: int | None) -> Markup:
    words = {
        "ahead": f"{method_name(pair.method)}’s are {'still ' if pair.budget < pair.rival_budget else ''}better",
        "behind": f"{method_name(pair.rival)}’s are better",
        "open": "neither’s are shown to be better",
        "unsaid": "too few tasks to say whose are better",
    }[edit_verdict(row)]
    ours, theirs = (f"{method_name(method)} at {format_denoises(budget, steps)}" for method, budget in pair.sides)
    return Markup("{} against {}: {}, {}.").format(ours, theirs, _with_interval(row), words)


def _with_interval(row: Row) -> str:
    written = format_gain(row)
    return written[0] if len(written) == 1 else "{} (95 % interval {} to {})".format(*written)


def _carried_out_and_preserved(candidates: pl.DataFrame, pair: Pair) -> tuple[float, float] | None:
    """The share of tasks in which each side's winner does both, over the tasks known of both sides."""
    if not {"carried_out", "preserved"} <= set(candidates.columns):
        return None
    both = pl.col("carried_out") * pl.col("preserved")
    ours, theirs = (
        candidates.filter("chosen", method=method, budget=budget).select("run", "task_id", both=both).drop_nulls("both")
        for method, budget in pair.sides
    )
    known = ours.join(theirs, on=["run", "task_id"], nulls_equal=True)
    if known.is_empty():
        return None
    ours_share, theirs_share = known.select(pl.mean("both", "both_right")).row(0)
    return ours_share, theirs_share
