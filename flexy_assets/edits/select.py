"""`flexy select`: chooses again among recorded candidates, with any weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from flexy_assets.edits.recorded_candidates import read_recorded_candidates
from flexy_assets.edits.search.selectors import Potential, edit_potential
from resources.errors import BadInputError

WINNERS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "id": pl.String(),
    "seed": pl.Int64(),
    "phase": pl.String(),
    "potential": pl.Float64(),
}

TOLERANCE: Final = 1e-9
"""How far a recorded potential may lie from the one computed here."""


def recorded_winners(candidates: pl.DataFrame, potential: Potential) -> pl.DataFrame:
    """The candidate of the highest potential for each id, ids as they first came (`WINNERS`).

    Among equal ones the one that was recorded first wins, as in the published code. `candidates` is
    `recorded.CANDIDATES`.
    """
    best = pl.col("potential") == pl.col("potential").max().over("id")
    ranked = _with_potential(candidates, potential).filter(best).unique("id", keep="first", maintain_order=True)
    first_line = candidates.group_by("id", maintain_order=True).agg().with_row_index("place")
    return ranked.join(first_line, on="id").sort("place").select(list(WINNERS_SCHEMA))


def potential_disagreements(candidates: pl.DataFrame, potential: Potential) -> pl.DataFrame:
    """The candidates whose recorded potential is not `potential`'s, to `TOLERANCE`: line, recorded, potential."""
    apart = (pl.col("recorded") - pl.col("potential")).abs() > TOLERANCE
    return _with_potential(candidates, potential).filter(apart).select("line", "recorded", "potential")


def select_recorded(path: Path, alpha: str, beta: str, alternatives: Sequence[str]) -> dict[str, Any]:
    """What `flexy select` says of the candidates in `path`; an alternative is as in `alpha=5,beta=0`.

    Raises `BadInputError` for weights that are no numbers and a file that cannot be read.
    """
    potential = edit_potential(alpha, beta)
    others = [_alternative(text, alpha, beta) for text in alternatives]
    candidates, skipped = read_recorded_candidates(path)
    chosen = recorded_winners(candidates, potential)
    published = edit_potential()
    apart = potential_disagreements(candidates, published)
    changes = [_change(candidates, chosen, other) for other in others]

    notes = []
    if candidates.height and (candidates["pf"] <= 1).all():
        notes.append(
            "every clip_prompt_following is at most 1: as a cosine its spread disappears beside the other terms;"
            " the published weights are for 100·cosine"
        )
    if apart.height:
        line, recorded, ours = apart.row(0)
        notes.append(
            f"{apart.height} recorded potentials are not {published} (line {line}: {recorded:.6g}, not {ours:.6g})"
        )
    lines = [
        f"{'id':<24} {'seed':>12}  {'phase':<8} {'potential':>12}",
        *(
            f"{row['id']:<24} {row['seed']:>12}  {row['phase']:<8} {row['potential']:>12.6f}"
            for row in chosen.iter_rows(named=True)
        ),
        f"{chosen.height} winners of {candidates.height} candidates by {potential}",
        *(f"by {other}: {change['changed']} winners change" for other, change in zip(others, changes, strict=True)),
        *(f"note: {note}" for note in notes),
    ]
    lost = "; ".join(str(each) for each in skipped[:3]) + ("; …" if len(skipped) > 3 else "")
    return {
        "winners": chosen.to_dicts(),
        "alternatives": changes,
        "disagreements": apart.to_dicts(),
        "notes": notes,
        "left_out": [{"line": each.line, "reason": each.reason} for each in skipped],
        "text": "\n".join(lines),
        "failed": f"{path}: {len(skipped)} of its lines left out: {lost}" if skipped else None,
    }


def _with_potential(candidates: pl.DataFrame, potential: Potential) -> pl.DataFrame:
    values = potential.values(candidates.select(list(potential.weights)).to_dicts())
    return candidates.with_columns(pl.Series("potential", values, dtype=pl.Float64))


def _change(candidates: pl.DataFrame, chosen: pl.DataFrame, potential: Potential) -> dict[str, Any]:
    """Which ids have another winner by `potential` than the `chosen` ones."""
    both = chosen.join(recorded_winners(candidates, potential), on="id", maintain_order="left")
    other = (pl.col("seed") != pl.col("seed_right")) | (pl.col("phase") != pl.col("phase_right"))
    weights = {"alpha": potential.weights["cons"], "beta": -potential.weights["lpips"]}
    changed = both.filter(other)["id"].to_list()
    return weights | {"changed": len(changed), "ids": changed}


def _alternative(text: str, alpha: str, beta: str) -> Potential:
    weights = {"alpha": alpha, "beta": beta}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() not in weights or not value:
            raise BadInputError(f"alternative {text!r} names no weights: write alpha=5, beta=1 or alpha=5,beta=1")
        weights[name.strip()] = value
    return edit_potential(**weights)
