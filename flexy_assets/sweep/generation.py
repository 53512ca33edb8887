"""Makes the images a plan still lacks, chunk by chunk; a chunk's rows are committed before the next is begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import polars as pl

from flexy_assets.storage import queries
from resources.database import Database
from resources.engines import Engine, ImageRequest
from resources.images import ImageStore


def missing(database: Database, plan: pl.DataFrame) -> pl.DataFrame:
    """The plan's rows that no image was made for."""
    with database.begin(reading=True) as connection:
        there = queries.made(connection, [UUID(image_id) for image_id in plan["image_id"]])
    return plan.filter(~pl.col("image_id").is_in([str(image_id) for image_id in there]))


def chunks(plan: pl.DataFrame, size: int) -> Iterator[list[dict[str, Any]]]:
    """The plan's rows in lists of at most `size`, all of one step count and one size of image."""
    alike = ["steps", "width", "height"]
    for _, rows in plan.sort(*alike, "index").group_by(alike, maintain_order=True):
        for chunk in rows.iter_slices(size):
            yield chunk.to_dicts()


def generate(
    database: Database, store: ImageStore, engine: Engine, plan: pl.DataFrame, made: Callable[[int], None]
) -> None:
    """Make the images of `plan`: file first, then row, so that a row never lacks its file.

    A kill costs at most the chunk under way; its files are written over when it is made again.
    `made` is told how many images each chunk added. Raises `FlexyError` where a file cannot be written.
    """
    for batch in plan["batch"].unique():
        store.discard_unfinished(batch)
    for chunk in chunks(plan, engine.images_a_call):
        requests = [
            ImageRequest(
                row["prompt"],
                row["negative_prompt"],
                row["steps"],
                row["guidance"],
                row["seed"],
                row["width"],
                row["height"],
            )
            for row in chunk
        ]
        began = time.perf_counter()
        images = engine.generate(requests)
        elapsed_ms = round(1000 * (time.perf_counter() - began) / len(chunk))
        written = [
            {name: value for name, value in row.items() if name not in ("image_id", "run_id", "index")}
            | {
                "id": UUID(row["image_id"]),
                "run_id": UUID(row["run_id"]),
                "elapsed_ms": elapsed_ms,
                "images_in_call": len(chunk),
                "image_sha256": store.write(row["image_path"], image),
            }
            for row, image in zip(chunk, images, strict=True)
        ]
        with database.begin() as connection:
            queries.add_images(connection, written)
        made(len(chunk))
