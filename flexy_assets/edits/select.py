"""`flexy select`: selects winners among recorded candidates, with any weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from flexy_assets.edits.recorded_candidates import read_recorded_candidates
from flexy_assets.edits.search.selectors import Potential, edit_potential
from flexy_assets.reporting.formatting import format_count
from resources.errors import BadInputError

WINNERS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "id": pl.String(),
    "seed": pl.Int64(),
    "phase": pl.String(),
    "potential": pl.Float64(),
}

TOLERANCE: Final = 1e-9  # accepted difference between a recorded potential and the one computed here


def recorded_winners(candidates: pl.DataFrame, potential: Potential) -> pl.DataFrame:
    """Return the candidate of the highest potential for each id, ids in recorded order (`WINNERS_SCHEMA`).

    Among equals the first recorded one wins, as in the published code. `candidates` has
    `RECORDED_CANDIDATES_SCHEMA`.
    """
    best = pl.col("potential") == pl.col("potential").max().over("id")
    ranked = _with_potential(candidates, potential).filter(best).unique("id", keep="first", maintain_order=True)
    recorded_order = candidates.group_by("id", maintain_order=True).agg().with_row_index("position")
    return ranked.join(recorded_order, on="id").sort("position").select(list(WINNERS_SCHEMA))


def potential_disagreements(candidates: pl.DataFrame, potential: Potential) -> pl.DataFrame:
    """Return the candidates whose recorded potential differs from `potential`: line, recorded, potential."""
    differs = (pl.col("recorded") - pl.col("potential")).abs() > TOLERANCE
    return _with_potential(candidates, potential).filter(differs).select("line", "recorded", "potential")


def select_recorded(path: Path, alpha: str, beta: str, alternatives: Sequence[str]) -> dict[str, Any]:
    """Return the JSON document of `flexy select` for the candidates in `path`; an alternative is `alpha=5,beta=0`.

    Raises `BadInputError` for invalid weights and an unreadable file.
    """
    potential = edit_potential(alpha, beta)
    other_potentials = [_parse_alternative(text, alpha, beta) for text in alternatives]
    candidates, skipped = read_recorded_candidates(path)
    winners, published = recorded_winners(candidates, potential), edit_potential()
    disagreements = potential_disagreements(candidates, published)
    changes = [_changed_winners(candidates, winners, other) for other in other_potentials]

    notes = []
    if candidates.height and (candidates["pf"] <= 1).all():
        notes.append(
            "every clip_prompt_following is at most 1: the spread of a plain cosine vanishes against the other terms;"
            " the published weights are for 100·cosine"
        )
    if disagreements.height:
        line, recorded, computed = disagreements.row(0)
        notes.append(
            f"{disagreements.height} recorded potentials differ from {published}"
            f" (line {line}: recorded {recorded:.6g}, computed {computed:.6g})"
        )
    lines = [f"{'id':<24} {'seed':>12}  {'phase':<8} {'potential':>12}"]
    lines += [f"{key:<24} {seed:>12}  {phase:<8} {value:>12.6f}" for key, seed, phase, value in winners.iter_rows()]
    counts = format_count(winners.height, "winner"), format_count(candidates.height, "candidate")
    lines += [f"{counts[0]} of {counts[1]} by {potential}"]
    other_changes = zip(other_potentials, changes, strict=True)
    lines += [f"by {other}: {format_count(change['changed'], 'winner')} changed" for other, change in other_changes]
    lines += [f"note: {note}" for note in notes]
    reasons = "; ".join(map(str, skipped[:3])) + ("; …" if len(skipped) > 3 else "")
    return {
        **{"winners": winners.to_dicts(), "alternatives": changes, "disagreements": disagreements.to_dicts()},
        **{"notes": notes, "left_out": [{"line": line.line, "reason": line.reason} for line in skipped]},
        "text": "\n".join(lines),
        "failed": f"{path}: {format_count(len(skipped), 'line')} skipped: {reasons}" if skipped else None,
    }


def _with_potential(candidates: pl.DataFrame, potential: Potential) -> pl.DataFrame:
    values = potential.values(candidates.select(list(potential.weights)).to_dicts())
    return candidates.with_columns(pl.Series("potential", values, dtype=pl.Float64))


def _changed_winners(candidates: pl.DataFrame, winners: pl.DataFrame, potential: Potential) -> dict[str, Any]:
    """Return the ids that have another winner by `potential`."""
    both = winners.join(recorded_winners(candidates, potential), on="id", maintain_order="left")
    differs = (pl.col("seed") != pl.col("seed_right")) | (pl.col("phase") != pl.col("phase_right"))
    weights = {"alpha": potential.weights["cons"], "beta": -potential.weights["lpips"]}
    changed = both.filter(differs)["id"].to_list()
    return weights | {"changed": len(changed), "ids": changed}


def _parse_alternative(text: str, alpha: str, beta: str) -> Potential:
    weights = {"alpha": alpha, "beta": beta}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() not in weights or not value:
            raise BadInputError(f"invalid alternative {text!r}: must be as in alpha=5, beta=1 or alpha=5,beta=1")
        weights[name.strip()] = value
    return edit_potential(**weights)
