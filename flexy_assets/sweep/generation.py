"""Generate the images a plan lacks, chunk by chunk; each chunk's rows are committed before the next starts."""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from uuid import UUID
from weakref import WeakSet

import polars as pl

from flexy_assets.storage.flexyface import record_run_status
from flexy_assets.storage.runs import add_images, calls_of, delete_measurements, recorded_files_of, replace_image
from resources.chunks import split_chunks
from resources.database import Database
from resources.engines import Engine, ImageRequest
from resources.errors import FlexyError
from resources.images import ImageStore, encode_png
from resources.models.compute import HalvingBatches, describe_runtime, take_peak_memory_mb, uses_tf32
from resources.models.entry import LocalModel
from resources.models.slot import ModelSlot

WARM_UP_STEPS = 2

CALL_COLUMNS = ("steps", "width", "height", "scheduler")
"""What the images of one call have in common."""

_warm_engines: WeakSet[Any] = WeakSet()
"""Engines that have made a call: their first is several times as long as the next."""


def images_to_generate(database: Database, store: ImageStore, plan: pl.DataFrame) -> pl.DataFrame:
    """Return the plan's rows without an image, and those whose file is missing or not as recorded.

    Raises `BadInputError` where there are images and no image root: all of them would look lost.
    """
    with database.begin(reading=True) as connection:
        files = recorded_files_of(connection, [UUID(image_id) for image_id in plan["image_id"]])
    if files:
        store.check()
    errors = store.find_lost(list(files.values()))
    intact = [str(image_id) for image_id, error in zip(files, errors, strict=True) if error is None]
    return plan.filter(~pl.col("image_id").is_in(intact))


def original_calls(
    database: Database, plan: pl.DataFrame, image_ids: Collection[str]
) -> list[Sequence[dict[str, Any]]]:
    """Return the calls that made `image_ids`, each as the plan's rows in order.

    Other images in a call may change an image's last bits, so that it is the same only among those it was made with.
    """
    with database.begin(reading=True) as connection:
        calls = calls_of(connection, [UUID(image_id) for image_id in plan["image_id"]])
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in plan.sort("index").to_dicts():
        if call := calls.get(UUID(row["image_id"])):
            groups.setdefault((call, *(row[name] for name in CALL_COLUMNS)), []).append(row)
    parts = [part for ((_, size), *_), rows in groups.items() for part in split_chunks(rows, size or len(rows))]
    return [part for part in parts if not {row["image_id"] for row in part}.isdisjoint(image_ids)]


def chunk_plan(plan: pl.DataFrame, size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the plan's rows in lists of at most `size`, each of one step count, image size and scheduler."""
    for _, rows in plan.sort(*CALL_COLUMNS, "index").group_by(CALL_COLUMNS, maintain_order=True):
        for chunk in rows.iter_slices(size):
            yield chunk.to_dicts()


@dataclass(frozen=True)
class GenerationOutcome:
    """What one pass made of a batch; `failed` are the reasons of the images that could not be made.

    `restored` of the `made` are the lost images again, bit for bit; `replaced` differ from them.
    """

    made: int = 0
    failed: tuple[str, ...] = ()
    restored: int = 0
    replaced: int = 0


def describe_provenance(model: LocalModel, slot: ModelSlot) -> dict[str, Any]:
    """Return on what the slot's loaded engine makes images, in columns of their rows."""
    return {"weights": model.fingerprint, "model_load_ms": slot.load_ms, **describe_runtime()}


def generate_images(
    database: Database,
    store: ImageStore,
    engine: Engine,
    plan: pl.DataFrame,
    on_progress: Callable[[int], Any],
    provenance: Mapping[str, Any] | None = None,
    partition: pl.DataFrame | None = None,
) -> GenerationOutcome:
    """Make the images of `plan`: file first, then row, so that a row never lacks its file.

    A kill costs at most the chunk under way; its files are written over when it is made again. An image that
    alone is too much for the memory fails alone and has no row, so that the next run tries it again. A lost image that
    is made again, bit for bit, keeps its row and scores. One that differs is made among those it was made with, of its
    `partition`; if it still differs, as on another GPU, it is recorded as what it is now, without scores.
    `on_progress` hears how many images each chunk added; `provenance` are columns of every row. The first call of an
    engine is made twice, with few steps the first time, so that no row holds a time that is not the image's. Raises
    `FlexyError` where a file cannot be written.
    """
    for batch in plan["batch"].unique():
        store.discard_unfinished(batch)
    made, failed = 0, []
    restored = replaced = 0
    halving = HalvingBatches(engine.batch_size)

    def timed(requests: Sequence[ImageRequest]) -> list[tuple[Any, dict[str, Any]]]:
        if engine not in _warm_engines:
            engine.generate([replace(request, steps=min(request.steps, WARM_UP_STEPS)) for request in requests])
            _warm_engines.add(engine)
        take_peak_memory_mb()
        began = time.perf_counter()
        images = engine.generate(requests)
        elapsed_ms = round(1000 * (time.perf_counter() - began) / len(requests))
        call = {"elapsed_ms": elapsed_ms, "images_in_call": len(requests), "tf32_enabled": uses_tf32()}
        return [(image, call | {"gpu_mem_peak_mb": take_peak_memory_mb()}) for image in images]

    settings = [field.name for field in fields(ImageRequest)]

    def make(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        return list(halving(timed, [ImageRequest(**{name: row[name] for name in settings}) for row in rows]))

    for chunk in chunk_plan(plan, engine.batch_size):
        written = []
        results = dict(zip((row["image_id"] for row in chunk), make(chunk), strict=True))
        with database.begin(reading=True) as connection:
            lost = recorded_files_of(connection, [UUID(image_id) for image_id in results])
        differing = {str(each) for each, (_, sha256) in lost.items() if not _is_image(results[str(each)], sha256)}
        for rows in original_calls(database, partition, differing) if partition is not None and differing else ():
            for row, result in zip(rows, make(rows), strict=True):
                if row["image_id"] in differing and _is_image(result, lost[UUID(row["image_id"])][1]):
                    results[row["image_id"]] = result
        for row in chunk:
            result = results[row["image_id"]]
            if isinstance(result, FlexyError):
                failed.append(f"image {row['index']} ({row['width']}×{row['height']}): {result}")
                continue
            image, call = result
            written.append(
                {name: value for name, value in row.items() if name not in ("image_id", "run_id", "index")}
                | {"id": UUID(row["image_id"]), "run_id": UUID(row["run_id"])}
                | {"image_sha256": store.write(row["image_path"], image)}
                | call
                | dict(provenance or {})
            )
        again = [row for row in written if row["id"] in lost]
        same = [row["id"] for row in again if row["image_sha256"] == lost[row["id"]][1]]
        with database.begin() as connection:
            add_images(connection, written)
            delete_measurements(connection, same, only_failed=True)
            for row in again:
                if row["id"] not in same:
                    replace_image(connection, row)
            for run_id in {row["run_id"] for row in written}:
                record_run_status(connection, run_id)
        made, restored, replaced = made + len(written), restored + len(same), replaced + len(again) - len(same)
        on_progress(len(written))
    return GenerationOutcome(made, tuple(failed), restored, replaced)


def _is_image(result: Any, sha256: str | None) -> bool:
    """Return whether a call made the image of this SHA-256."""
    return not isinstance(result, FlexyError) and hashlib.sha256(encode_png(result[0])).hexdigest() == sha256
