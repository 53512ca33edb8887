"""Scoring reads each file once and ahead of the model, survives what it cannot read, and takes any scorer."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sqlalchemy import select

from flexy_assets.scoring import missing_scores
from flexy_assets.scoring.missing_scores import CHUNK_IMAGES, PREFETCH_CHUNKS, Rows, read_ahead
from flexy_assets.scoring.work import Work
from flexy_assets.storage.embeddings import select_pending_embeddings
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import add_images
from flexy_assets.storage.scores import EMBEDDING_METRIC, PendingImage, read_scores
from flexy_assets.storage.tables import image_scores
from resources import images as image_files
from resources.database import Database
from resources.errors import FlexyError
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.models.slot import ModelSlot
from resources.scorers.clip import ClipEncoder
from resources.settings import Settings
from tests.support.overlay import project_with_metric, run_python

PROJECT = Path(__file__).parent.parent.parent


class CountingStore(ImageStore):
    """Counts how often each file is opened."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.opened: dict[str, int] = {}
        self.counting = threading.Lock()

    def read(self, path: str, sha256: str | None = None) -> Image.Image:
        with self.counting:
            self.opened[path] = self.opened.get(path, 0) + 1
        return super().read(path, sha256)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    settings = Settings.read({"FLEXY_HOME": str(tmp_path)})
    database = Database(settings.database_url)
    migrate(database)
    return Work(database, CountingStore(str(tmp_path)), ModelSlot(), settings)


def add(work: Work, files: Sequence[str], batch: str = "b_0000", **columns: Any) -> list[UUID]:
    ids = [uuid4() for _ in files]
    fixed = {"engine": "mini_sdxl", "batch": batch, "prompt": "a red circle"} | columns
    with work.database.begin() as connection:
        add_images(connection, [fixed | {"id": i, "image_path": file} for i, file in zip(ids, files, strict=True)])
    return ids


def draw(work: Work, count: int, folder: str = "drawn") -> list[str]:
    rng = np.random.default_rng(0)
    files = []
    for index in range(count):
        picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        work.store.write(f"{folder}/{index}.png", picture)
        files.append(f"{folder}/{index}.png")
    return files


def score_all(work: Work, batches: Sequence[str]) -> None:
    for _ in missing_scores.embed_images(work, batches, lambda _: None):
        pass
    for metric in METRICS.values():
        for _ in missing_scores.score_images(work, metric, batches, lambda _: None):
            pass


def rows(work: Work) -> dict[str, dict[str, Any]]:
    with work.database.begin(reading=True) as connection:
        return {row["image_path"]: row for row in read_scores(connection, Settings.read({})).iter_rows(named=True)}


def reasons(work: Work, image_id: UUID) -> dict[str, str]:
    with work.database.begin(reading=True) as connection:
        found = connection.execute(select(image_scores).where(image_scores.c.image_id == image_id))
        return {row.metric: row.error for row in found if row.value is None}


def test_each_file_is_decoded_once_however_many_scorers_read_it(work: Work) -> None:
    files = draw(work, 2 * CHUNK_IMAGES + 5)
    add(work, files[:40], "b_0000")
    add(work, files[40:], "b_0001")
    score_all(work, ["b_0000", "b_0001"])
    assert work.store.opened == dict.fromkeys(files, 1)
    assert all(row[metric] is not None for row in rows(work).values() for metric in METRICS)
    assert not work.store._shared
    assert work.store._shared_bytes == 0


def test_what_does_not_fit_is_decoded_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_SHARED_BYTES", 10 * 64 * 64 * 3)
    files = draw(work, 30)
    add(work, files)
    score_all(work, ["b_0000"])
    assert sorted(work.store.opened.values()) == [1] * 10 + [2] * 20


def test_batches_are_told_of_in_order_as_they_end(work: Work) -> None:
    files = draw(work, 3 * CHUNK_IMAGES)
    add(work, files[:CHUNK_IMAGES], "b_0000")
    add(work, files[CHUNK_IMAGES:], "b_0002")
    ended = missing_scores.embed_images(work, ["b_0000", "b_0001", "b_0002"], lambda _: None)
    first = next(ended)
    assert (first[0], first[1].done) == ("b_0000", CHUNK_IMAGES)
    with work.database.begin(reading=True) as connection:
        left = select_pending_embeddings(work.fingerprint("clip"), work.settings).of(connection, "b_0002")
    assert len(left) == 2 * CHUNK_IMAGES
    assert [(batch, outcome.done) for batch, outcome in ended] == [("b_0001", 0), ("b_0002", 2 * CHUNK_IMAGES)]


def test_the_model_computes_nine_tenths_of_the_time_where_it_is_the_slower_part(work: Work) -> None:
    files = draw(work, 8 * CHUNK_IMAGES)
    pending = [PendingImage(uuid4(), None, file, None) for file in files]
    chunks = [("b_0000", pending[start : start + CHUNK_IMAGES]) for start in range(0, len(pending), CHUNK_IMAGES)]

    def prepare(picture: Image.Image) -> Image.Image:
        time.sleep(0.002)  # decoding a large file, which holds no lock either
        return picture

    waits, computed = [], time.perf_counter()
    for _, chunk in read_ahead(work.store, iter(chunks), prepare, "clip"):
        waits.append(time.perf_counter() - computed)
        time.sleep(0.25)
        computed = time.perf_counter()
        assert len(chunk) == CHUNK_IMAGES
    # The median, and without the first: a busy machine delays some.
    assert sorted(waits[1:])[len(waits) // 2] <= 0.025


def test_reading_ahead_keeps_a_bounded_number_of_chunks(work: Work) -> None:
    asked: list[int] = []

    def chunks() -> Iterator[Rows]:
        for number in range(10):
            asked.append(number)
            yield "b_0000", [PendingImage(uuid4(), None, "nosuch.png", None)]

    reading = read_ahead(work.store, chunks(), lambda picture: picture, "clip")
    for number in range(10):
        _, [(_, found)] = next(reading)
        assert isinstance(found, FlexyError)
        assert len(asked) <= number + PREFETCH_CHUNKS + 1


def test_a_reader_that_is_given_up_leaves_no_thread_behind(work: Work) -> None:
    pending = [("b_0000", [PendingImage(uuid4(), None, file, None)]) for file in draw(work, 20)]
    reading = read_ahead(work.store, iter(pending), lambda picture: picture, "clip")
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def hostile(folder: Path) -> dict[str, str | None]:
    """Pictures that are hard to read, each with what is to be said of it; None where it is scored."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    plain = Image.fromarray(rng.integers(0, 256, (50, 80, 3), dtype=np.uint8))
    plain.save(folder / "plain.png")
    Image.new("RGB", (1, 1), "red").save(folder / "one_pixel.png")
    plain.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(rng.integers(0, 65536, (40, 40), dtype=np.uint16)).save(folder / "sixteen_bit.png")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    plain.save(folder / "animated.gif", save_all=True, append_images=[plain.rotate(90), plain.rotate(180)])
    rotated = Image.Exif()
    rotated[0x0112] = 6
    plain.save(folder / "rotated.jpg", exif=rotated)
    content = (folder / "plain.png").read_bytes()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    Image.new("L", (20_000, 2)).save(folder / "thin.png")
    # A header of thirty thousand by forty thousand, over a billion pixels, in a file of a few bytes.
    bomb = bytearray(content)
    bomb[16:24] = (40_000).to_bytes(4) + (30_000).to_bytes(4)
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4)
    (folder / "bomb.png").write_bytes(bytes(bomb))
    scored = ("plain.png", "one_pixel.png", "alpha.png", "sixteen_bit.png", "cmyk.jpg", "animated.gif", "rotated.jpg")
    return dict.fromkeys(scored) | {
        "truncated.png": "cannot decode image",
        "empty.png": "cannot decode image",
        "text.png": "cannot decode image",
        "thin.png": "too long and thin",
        "bomb.png": "pixels",
        "missing.png": "cannot read image",
        "../outside.png": "leads outside the image root",
    }


def test_a_picture_that_cannot_be_scored_says_why_and_the_rest_is_scored(work: Work) -> None:
    expected = hostile(Path(work.store.root, "hard"))
    files = [f"hard/{name}" if not name.startswith("..") else name for name in expected]
    ids = add(work, files)
    score_all(work, ["b_0000"])
    found = rows(work)
    for file, image_id, reason in zip(files, ids, expected.values(), strict=True):
        if reason is None:
            assert all(np.isfinite(found[file][metric]) for metric in METRICS), file
            continue
        assert {metric for metric in METRICS if found[file][metric] is None} == METRICS.keys(), file
        assert reasons(work, image_id).keys() == {*METRICS, EMBEDDING_METRIC}
        assert all(reason in said and "\n" not in said for said in reasons(work, image_id).values()), file


def test_a_batch_too_large_for_the_memory_is_scored_in_parts_and_one_image_fails_alone(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = draw(work, 20)
    ids = add(work, files)
    whole = ClipEncoder.images
    giant: list[np.ndarray] = []

    def images(self: ClipEncoder, pixels: Sequence[np.ndarray]) -> np.ndarray:
        if len(pixels) > 3 or any((p == g).all() for p in pixels for g in giant):
            torch.empty(10**18, dtype=torch.uint8)
        return whole(self, pixels)

    monkeypatch.setattr(ClipEncoder, "images", images)
    giant.append(work.slot.get(work.model("clip")).prepare(work.store.read(files[7])))
    for _, outcome in missing_scores.embed_images(work, ["b_0000"], lambda _: None):
        assert (outcome.done, outcome.failed) == (19, 1)
    assert "out of memory" in reasons(work, ids[7])[EMBEDDING_METRIC]


SHARPNESS = '''
"""How sharp an image is: the mean absolute difference of neighbouring pixels."""

import numpy as np

from resources.metrics import Metric

METRICS = (
    Metric(
        "sharpness", "Sharpness", "how sharp the image is", 0, 255, unit="grey levels", scorer=f"{__name__}:Sharpness"
    ),
)


class Sharpness:
    batch_size = 8

    def prepare(self, picture):
        return np.asarray(picture.convert("L"), dtype=np.float32)

    def scores(self, prepared, prompts):
        return np.array([np.abs(np.diff(pixels)).mean() for pixels in prepared], dtype=np.float32)
'''
PROGRAM = """
import json
from click.testing import CliRunner
from dagster import AssetKey
from flexy_assets.cli.app import main
from flexy_assets.definitions import defs

def flexy(*arguments):
    done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)

plan = flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "4", "--steps", "2")
graph = defs.resolve_asset_graph()
schema = graph.get(AssetKey("sweep_scores")).metadata["dagster/column_schema"]
found = {
    "asset": graph.get(AssetKey("sharpnesss")).description,
    "column": next(column.description for column in schema.columns if column.name == "sharpness"),
    "checks": [key.name for key in graph.asset_check_keys if key.asset_key == AssetKey("sharpnesss")],
    "run": flexy("sweep", "run", plan["run"]),
    "status": flexy("status"),
}
print(json.dumps(found))
"""


@pytest.mark.slow(seconds=30)
def test_adding_a_metric_to_a_sweep_is_one_file(home: Path, tmp_path: Path) -> None:
    project = project_with_metric(tmp_path / "project", "sweep", "sharpness", SHARPNESS)
    found = json.loads(run_python(project, "-c", PROGRAM))
    assert found["asset"] == "`sharpness` (Sharpness): how sharp the image is."
    assert found["column"] == "Sharpness: how sharp the image is (grey levels)"
    assert {"known_maker", "in_range", "no_missing_scores", "no_drift"} == set(found["checks"])
    assert found["run"]["scores_computed"] == 4 * (len(METRICS) + 1)
    assert found["status"]["runs"][0]["sharpness"] == {"scored": 4, "missing": 0, "failed": 0}
    scores = pl.read_parquet(home / "assets/sweep_scores.parquet")["sharpness"]
    assert scores.null_count() == 0
    assert scores.min() > 0
    correlations = pl.read_parquet(home / "assets/metric_correlations.parquet")
    assert "sharpness" in correlations["right"].to_list()
    assert "Sharpness" in (home / "assets/sweep_report.html").read_text()
