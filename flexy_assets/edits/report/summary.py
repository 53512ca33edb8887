"""The comparison in a few sentences, with its uncertainty.

Only metrics that were not used for selection are evidence: the ground truth where it is known, or independent ones.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import polars as pl
from markupsafe import Markup

from flexy_assets.edits.labels import format_denoises, method_name, metric_label
from flexy_assets.reporting.formatting import format_count, format_number, format_signed, join_words

MIN_TASKS: Final = 10  # with fewer no method is called better: the bootstrap interval is too narrow

Row = dict[str, Any]  # of `comparison.COMPARISON_SCHEMA`
EditVerdict = Literal["better", "worse", "no difference", "too few"]


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
        """Return the rows of this pair, one per metric."""
        return comparison.filter(**asdict(self)).to_dicts()


def method_pairs(comparison: pl.DataFrame) -> list[Pair]:
    """Return every pair, the headline's first: the first two methods at their largest equal budget, or largest."""
    sides = comparison.select("method", "budget", "rival", "rival_budget").unique(maintain_order=True)
    pairs = [Pair(*row) for row in sides.iter_rows()]

    def rank(pair: Pair) -> tuple[bool, bool, int, int]:
        is_first = (pair.method, pair.rival) == (pairs[0].method, pairs[0].rival)
        return is_first, pair.equal, pair.rival_budget, pair.budget

    return sorted(pairs, key=rank, reverse=True)


def decisive_row(rows: Sequence[Row]) -> Row | None:
    """Return the row that decides: the ground truth's, or else that of the first independent metric."""
    evidence = [row for row in rows if row["role"] != "selecting" and row["n"]]
    return min(evidence, key=lambda row: (row["metric"] != "truth", row["role"] != "ground truth"), default=None)


def edit_verdict(row: Row) -> EditVerdict:
    """Return whether the method is better, worse, not significantly different, or compared on too few tasks."""
    if row["gain_low"] is None or row["n"] < MIN_TASKS:
        return "too few"
    return "better" if row["gain_low"] > 0 else "worse" if row["gain_high"] < 0 else "no difference"


def format_gain(row: Row) -> list[str]:
    """Return a gain and the ends of its interval as text, as far as they are known."""
    known = [row[name] for name in ("gain", "gain_low", "gain_high") if row[name] is not None]
    return format_signed(known) if known else []


def mean_score(levels: pl.DataFrame, metric: str, method: str, budget: int) -> float | None:
    """Return a method's mean at a budget (`comparison.MEAN_SCORES_SCHEMA`), None where it was not measured."""
    means = levels.filter(metric=metric, method=method, budget=budget)["mean"]
    return means[0] if len(means) else None


def summarize_comparison(
    candidates: pl.DataFrame, comparison: pl.DataFrame, levels: pl.DataFrame, steps: int | None
) -> list[Markup]:
    """Say whose edits are better, by which metric, and whether a smaller budget is enough.

    `candidates` are the report's; `steps` are those of a full denoise, None where they differ.
    """
    if comparison.is_empty():
        return [Markup("<strong>No result yet:</strong> no task has been compared.")]
    headline, *rest = method_pairs(comparison)
    rows = headline.rows(comparison)
    lead = decisive_row(rows)
    ours, theirs = method_name(headline.method), method_name(headline.rival)
    if lead is None:
        text = Markup("<strong>Whether {}’s or {}’s edits are better is unknown:</strong> {}.")
        return [text.format(ours, theirs, "no task has both scores of a metric that was not used for selection")]
    sentences = [_claim(headline, lead, levels, steps)]
    if lead["role"] == "ground truth" and (shares := _carried_out_and_preserved(candidates, headline)):
        text = Markup("{}’s edits carry out the instruction and keep the rest in {:.0%} of tasks, {}’s in {:.0%}.")
        sentences.append(text.format(ours, shares[0], theirs, shares[1]))
    others = [row for row in rows if row["role"] != "selecting" and row["n"] and row is not lead]
    if others:
        sentences.append(_others(others, ours, theirs))
    for pair in rest:
        if not pair.equal and pair.sides[1] == headline.sides[1] and pair.method == headline.method:
            row = next((row for row in pair.rows(comparison) if row["metric"] == lead["metric"] and row["n"]), None)
            sentences += [_unequal(pair, row, steps)] if row else []
    return sentences


def _claim(pair: Pair, lead: Row, levels: pl.DataFrame, steps: int | None) -> Markup:
    ours, theirs = method_name(pair.method), method_name(pair.rival)
    verdict = edit_verdict(lead)
    few = f"{format_count(lead['n'], 'task')} {'is' if lead['n'] == 1 else 'are'} too few"
    claim = {
        "better": f"{ours}’s edits are better than {theirs}’s",
        "worse": f"{theirs}’s edits are better than {ours}’s",
        "no difference": f"{ours}’s and {theirs}’s edits do not differ significantly",
        "too few": f"whether {ours}’s or {theirs}’s edits are better is unknown: {few}",
    }[verdict]
    means = [mean_score(levels, lead["metric"], *side) for side in pair.sides]
    return Markup("<strong>At {}{} {}.</strong> By {}{}: {}{}{} over {}; {:,} won, {:,} tied, {:,} lost.").format(
        format_denoises(pair.budget, steps),
        "" if pair.equal else f" against {format_denoises(pair.rival_budget, steps)}",
        claim,
        "the ground truth" if lead["metric"] == "truth" else metric_label(lead["metric"]),
        ", which was not used for selection" if lead["role"] == "independent" else "",
        "" if None in means else f"{format_number(means[0])} against {format_number(means[1])}, ",
        _with_interval(lead),
        ", which includes 0," if verdict == "no difference" else "",
        format_count(lead["n"], "task"),
        *(lead[name] for name in ("wins", "ties", "losses")),
    )


def _others(rows: Sequence[Row], ours: str, theirs: str) -> Markup:
    beginnings: dict[EditVerdict, str] = {
        "better": f"{ours} is better by",
        "worse": f"{theirs} is better by",
        "no difference": "no significant difference by",
        "too few": "too few tasks have",
    }
    metrics: dict[EditVerdict, list[str]] = {verdict: [] for verdict in beginnings}
    for row in rows:
        metrics[edit_verdict(row)].append(metric_label(row["metric"]))
    words = "; ".join(f"{beginnings[verdict]} {join_words(names)}" for verdict, names in metrics.items() if names)
    return Markup("Other metrics not used for selection: {}.").format(words)


def _unequal(pair: Pair, row: Row, steps: int | None) -> Markup:
    words = {
        "better": f"{method_name(pair.method)}’s are {'still ' if pair.budget < pair.rival_budget else ''}better",
        "worse": f"{method_name(pair.rival)}’s are better",
        "no difference": "no significant difference",
        "too few": "too few tasks to compare",
    }[edit_verdict(row)]
    ours, theirs = (f"{method_name(method)} at {format_denoises(budget, steps)}" for method, budget in pair.sides)
    return Markup("{} against {}: {}, {}.").format(ours, theirs, _with_interval(row), words)


def _with_interval(row: Row) -> str:
    written = format_gain(row)
    return written[0] if len(written) == 1 else "{} (95 % interval {} to {})".format(*written)


def _carried_out_and_preserved(candidates: pl.DataFrame, pair: Pair) -> tuple[float, float] | None:
    """Return the share of tasks in which each side's winner does both, over the tasks known of both sides."""
    if not {"carried_out", "preserved"} <= set(candidates.columns):
        return None
    both = pl.col("carried_out") * pl.col("preserved")
    ours, theirs = (
        candidates.filter("chosen", method=method, budget=budget).select("run", "task_id", both=both).drop_nulls("both")
        for method, budget in pair.sides
    )
    known = ours.join(theirs, on=["run", "task_id"], nulls_equal=True)
    ours_share, theirs_share = known.select(pl.mean("both", "both_right")).row(0)
    return None if known.is_empty() else (ours_share, theirs_share)
