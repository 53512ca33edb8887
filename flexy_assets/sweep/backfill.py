"""Which batches a run that fills holes is to cover."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def batches_to_fill(
    missing: Mapping[str, Mapping[str, int]], under_way: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """By metric, the batches that lack scores and that no run is at."""
    left = {
        metric: [batch for batch in batches if batch not in under_way.get(metric, ())]
        for metric, batches in missing.items()
    }
    return {metric: batches for metric, batches in left.items() if batches}


def backfill_tags(holes: Mapping[str, Collection[str]], missing: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """What the list of runs shows of one: by metric, how many scores it is to fill."""
    return {f"flexy/{metric}": str(sum(missing[metric][b] for b in batches)) for metric, batches in holes.items()}


def nothing_missing_reason(strangers: Mapping[str, int], models: str) -> str:
    """Why there is nothing to fill: all is there, or what is missing is not for these models."""
    if not strangers:
        return "nothing is missing"
    others = ", ".join(f"{count:,} images of {engine}" for engine, count in sorted(strangers.items()))
    return f"nothing is missing that FLEXY_MODELS={models} may score; left alone: {others}"
