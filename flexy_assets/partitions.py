"""The partition definitions, and how an asset reports what it did to a partition."""

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

# Dagster's version is pinned; without this every command and server prints these warnings at its start.
warnings.filterwarnings("ignore", message="Parameter `(backfill_policy|owners)`", category=dg.BetaWarning)

SEED_BATCHES, EDIT_BATCHES, LABEL_BATCHES = "seed_batches", "edit_batches", "label_batches"

seed_batches = dg.DynamicPartitionsDefinition(name=SEED_BATCHES)
"""Images of a sweep, keyed `<sweep>_<index>`; a Dagster run covers any range of them."""

edit_batches = dg.DynamicPartitionsDefinition(name=EDIT_BATCHES)
"""Edit tasks of a comparison, keyed `<comparison>_<index>`."""

label_batches = dg.DynamicPartitionsDefinition(name=LABEL_BATCHES)
"""Tasks of a Label Studio project, keyed `<project>_<index>`."""


def report_partition(context: dg.AssetExecutionContext, batch: str, metadata: Mapping[str, Any]) -> None:
    """Report a finished partition at once; without this a run over many partitions shows nothing until its end."""
    if len(context.partition_keys) > 1:
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=batch, metadata=metadata))
    context.add_asset_metadata(metadata, partition_key=batch)
