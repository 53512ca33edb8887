"""Names of assets, jobs, ops and partitions that are built from other names. Only this module knows their form."""

from uuid import UUID

BACKFILL_JOB = "backfill_scores"  # the job that computes missing scores

DEPRECATED_BACKFILL_JOB = "heal_scores"  # the name that job had before; it works for one release

SWEEP_JOB = "sweep"  # the job that plans a sweep, makes its images and scores them

SWEEP_TAG = "flexy/sweep"  # of a Dagster run: the beginning of the id of the sweep that it makes or plans

ENGINE_TAG = "flexy/engine"

COMMAND_TAG = "flexy/command"  # of a Dagster run that a command started: the command

EMBEDDINGS_ASSET = "clip_embeddings"


def score_asset(metric: str) -> str:
    """Return the asset that holds the scores of `metric`."""
    return f"{metric}s"


def backfill_op(name: str) -> str:
    """Return the op of the backfill job that computes what is missing of a metric, or of `EMBEDDINGS_ASSET`."""
    return f"backfill_{name}"


def partition_prefix(owner: UUID) -> str:
    """Return the beginning of the partition keys of a sweep or a comparison: eight digits of its id."""
    return owner.hex[:8]


def partition_key(prefix: str, index: int) -> str:
    """Return the key of a partition, for example 4b7193fd_0003."""
    return f"{prefix}_{index:04d}"
