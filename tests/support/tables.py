"""Finished tables against what the UI says of them."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import polars as pl

from flexy_assets.reporting import columns
from resources.settings import Settings


def described_otherwise(folder: Path) -> list[str]:
    """The assets of which there is a table with other columns, or other types, than their definitions show."""
    from flexy_assets.definitions import build_definitions

    defs = build_definitions(Settings.read())

    tables = {path.stem: pl.read_parquet(path) for path in folder.glob("*.parquet")}
    assert tables
    found = []
    for name, table in tables.items():
        (made,) = columns.column_schema_metadata(table.schema).values()
        of = defs.resolve_assets_def(dg.AssetKey(name)).get_asset_spec(dg.AssetKey(name))
        declared = of.metadata["dagster/column_schema"]
        if [(each.name, each.type) for each in made.columns] != [(each.name, each.type) for each in declared.columns]:
            found.append(name)
    return found
