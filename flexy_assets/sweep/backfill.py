"""The partitions that a backfill covers."""

from collections.abc import Collection, Mapping


def select_partitions(
    missing: Mapping[str, Mapping[str, int]], in_progress: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """Return by metric the partitions with missing scores that no Dagster run is computing."""
    selected = {}
    for metric, batches in missing.items():
        if remaining := [batch for batch in batches if batch not in in_progress.get(metric, ())]:
            selected[metric] = remaining
    return selected


def backfill_tags(selected: Mapping[str, Collection[str]], missing: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Return the Dagster run's tags: by metric, how many scores it is to compute."""
    return {f"flexy/{metric}": str(sum(missing[metric][b] for b in batches)) for metric, batches in selected.items()}
