"""Keeps finished tables as Parquet, one file per asset, where users and notebooks find them by name."""

from pathlib import Path

import dagster as dg
import polars as pl

from resources.errors import FlexyError
from resources.files import describe_os_error, replacing


class ParquetTables(dg.IOManager):
    """Writes Polars frames to `<folder>/<asset>.parquet`, replacing the file, and reads them from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: dg.AssetKey) -> Path:
        return self.folder / f"{'_'.join(key.path)}.parquet"

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        path = self.path(context.asset_key)
        try:
            with replacing(path) as temporary:
                obj.write_parquet(temporary)
        except OSError as error:
            raise FlexyError(f"cannot write {path}: {describe_os_error(error)}") from error
        context.add_output_metadata({"file": dg.MetadataValue.path(path), "dagster/row_count": len(obj)})

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        path = self.path(context.asset_key)
        if not path.exists():
            raise FlexyError(f"no file {path}: materialise {context.asset_key.to_user_string()} first")
        return pl.read_parquet(path)
