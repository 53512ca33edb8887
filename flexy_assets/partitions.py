"""Partitions, and how an asset says of each what it did."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

# Pinned with Dagster's version; without this every command and server prints them at its start.
warnings.filterwarnings("ignore", message="Parameter `(backfill_policy|owners)`", category=dg.BetaWarning)

seed_batches = dg.DynamicPartitionsDefinition(name="seed_batches")
"""Batches of a sweep's images, keyed `<run>_<index>`; a run covers any range of them."""

edit_batches = dg.DynamicPartitionsDefinition(name="edit_batches")
"""Batches of a comparison's edit tasks, keyed `<comparison>_<index>`."""

label_batches = dg.DynamicPartitionsDefinition(name="label_batches")
"""Batches of a Label Studio project's tasks, keyed `<project>_<index>`."""


def report_partition(context: dg.AssetExecutionContext, batch: str, metadata: Mapping[str, Any]) -> None:
    """Show a finished batch at once; without this a run over many batches shows nothing until its end."""
    if len(context.partition_keys) > 1:
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=batch, metadata=metadata))
    context.add_asset_metadata(metadata, partition_key=batch)
