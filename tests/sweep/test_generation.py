"""Images are made in calls that fit the memory; one that never fits fails alone, and all others are there."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from sqlalchemy import select

from flexy_assets.cli.app import main
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import save_sweep
from flexy_assets.storage.scores import ScoredImage, record_scores
from flexy_assets.storage.tables import bench_run_results, image_scores
from flexy_assets.sweep.generation import (
    GenerationOutcome,
    chunk_plan,
    describe_provenance,
    generate_images,
    images_to_generate,
)
from flexy_assets.sweep.plan import SettingRange, Sweep
from resources.database import Database
from resources.engines import ImageRequest
from resources.errors import BadInputError
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.models import registry
from resources.models.entry import ModelEntry
from resources.models.slot import ModelSlot
from resources.settings import Settings

ROOT = Path(__file__).parent.parent.parent
PROMPTS = ("a fox", "an owl", "a giant", "a tree", "a boat", "a hill", "a lamp", "a mill")
SWEEP = Sweep("mini_painter", PROMPTS, SettingRange(4, 4), SettingRange(1, 12), width=64, height=48)


class Painter:
    """Draws plain pictures; more than `room` in a call, or a giant without room for `giants`, is too much memory."""

    def __init__(self, room: int = 8, giants: bool = False, slow_start: bool = False) -> None:
        self.batch_size, self.slow_start = 8, slow_start
        self.room, self.giants = room, giants
        self.made: list[Sequence[ImageRequest]] = []

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        if len(requests) > self.room or (not self.giants and "a giant" in {r.prompt for r in requests}):
            torch.empty(10**18, dtype=torch.uint8)
        self.made.append(requests)
        if self.slow_start and len(self.made) == 1:
            time.sleep(0.2)
        return [drawn(request.seed, request.width, request.height) for request in requests]


class Repainter(Painter):
    """Draws other pictures than the painter, as another GPU may."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        return [image.rotate(180).convert("L").convert("RGB") for image in super().generate(requests)]


class Neighbour(Painter):
    """Draws pictures that depend on the first of the call, as last bits may."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        first, *_ = super().generate(requests)
        return [Image.blend(drawn(r.seed, r.width, r.height), first, 0.3) for r in requests]


def drawn(seed: int, width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), f"hsl({seed % 360}, 70%, 50%)")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'flexy.sqlite'}")
    migrate(database)
    return database


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "images"))


def planned(database: Database, sweep: Sweep, images: int) -> pl.DataFrame:
    """The rows of a run that the database knows."""
    with database.begin() as connection:
        save_sweep(connection, sweep.run_id, sweep.engine, images, sweep.to_json())
    return sweep.rows(0, images)


def rows(database: Database) -> dict[str, dict[str, Any]]:
    """Every image's row by its path."""
    with database.begin(reading=True) as connection:
        return {row["image_path"]: dict(row) for row in connection.execute(select(bench_run_results)).mappings()}


def made(database: Database, store: ImageStore, engine: Painter, plan: pl.DataFrame) -> GenerationOutcome:
    """One pass over what the plan lacks; the bar hears of every image made."""
    progress: list[int] = []
    outcome = generate_images(database, store, engine, images_to_generate(database, store, plan), progress.append)
    assert sum(progress) == outcome.made
    return outcome


def test_a_batch_too_large_for_the_memory_is_made_in_halves_and_every_image_is_there(
    database: Database, store: ImageStore
) -> None:
    plan, engine = planned(database, SWEEP, 10), Painter(room=3, giants=True)
    assert made(database, store, engine, plan) == GenerationOutcome(10)
    # The first is the warm-up.
    assert [(len(call), call[0].steps) for call in engine.made] == [(2, 2), *[(2, 4)] * 5]
    found = rows(database)
    assert found.keys() == set(plan["image_path"])
    for wanted in plan.iter_rows(named=True):
        row = found[wanted["image_path"]]
        assert (str(row["id"]), str(row["run_id"]), row["images_in_call"]) == (wanted["image_id"], wanted["run_id"], 2)
        settings = ("batch", "engine", "prompt", "negative_prompt", "steps", "guidance", "seed", "width", "height")
        assert [row[name] for name in settings] == [wanted[name] for name in settings]
        assert store.read(row["image_path"], row["image_sha256"]).tobytes() == drawn(row["seed"], 64, 48).tobytes()


def test_an_image_that_alone_is_too_much_fails_alone_and_is_tried_again_by_itself(
    database: Database, store: ImageStore
) -> None:
    plan = planned(database, SWEEP, len(PROMPTS))
    giant = plan.row(by_predicate=pl.col("prompt") == "a giant", named=True)
    reason = f"image {giant['index']} (64×48): out of memory for this image alone: use a smaller image, or more memory"
    assert made(database, store, Painter(), plan) == GenerationOutcome(7, (reason,))
    there = rows(database)
    assert there.keys() == set(plan["image_path"]) - {giant["image_path"]}
    assert not Path(store.root, giant["image_path"]).exists()

    assert made(database, store, Painter(), plan) == GenerationOutcome(0, (reason,))
    engine = Painter(giants=True)
    assert made(database, store, engine, plan) == GenerationOutcome(1)
    assert [[request.prompt for request in call] for call in engine.made] == [["a giant"]] * 2
    assert {path: row for path, row in rows(database).items() if path != giant["image_path"]} == there
    assert images_to_generate(database, store, plan).is_empty()


def test_what_is_lost_is_made_again_and_what_differs_is_scored_anew(database: Database, store: ImageStore) -> None:
    plan = planned(database, SWEEP, 6)
    made(database, store, Painter(giants=True), plan)
    paths, before = plan["image_path"].to_list(), rows(database)
    ids = [before[path]["id"] for path in paths]
    with database.begin() as connection:
        record_scores(connection, "clip_score", "scorer", [ScoredImage(ids[0], 0.25), ScoredImage(ids[3], 0.5)])
        record_scores(connection, "hps_v2_score", "scorer", [ScoredImage(ids[0], None, "the file is gone")])
    before = rows(database)
    files = [Path(store.root, path) for path in paths]
    files[0].unlink()
    files[1].write_bytes(files[2].read_bytes())
    os.truncate(files[3], 40)
    assert images_to_generate(database, store, plan)["image_path"].to_list() == [paths[0], paths[1], paths[3]]
    assert made(database, store, Painter(giants=True), plan) == GenerationOutcome(3, restored=3)
    assert rows(database) == before
    with database.begin(reading=True) as connection:
        assert connection.scalars(select(image_scores.c.error).where(image_scores.c.error.is_not(None))).all() == []

    files[3].unlink()
    outcome = generate_images(database, store, Repainter(giants=True), plan.slice(3, 1), lambda _: None)
    assert outcome == GenerationOutcome(1, replaced=1)
    after = rows(database)
    row = after.pop(paths[3])
    assert row["clip_score"] is None and row["image_sha256"] != before.pop(paths[3])["image_sha256"]
    assert after == before and images_to_generate(database, store, plan).is_empty()

    shutil.rmtree(store.root)
    with pytest.raises(BadInputError, match=r"the image root .* does not exist"):
        images_to_generate(database, store, plan)


def test_a_lost_image_that_depends_on_its_call_is_made_among_the_same_images(
    database: Database, store: ImageStore
) -> None:
    plan = planned(database, SWEEP, 10)
    made(database, store, Neighbour(giants=True), plan)
    before = rows(database)
    for path in plan["image_path"][3], plan["image_path"][9]:
        Path(store.root, path).unlink()
    lost = images_to_generate(database, store, plan)
    engine = Neighbour(giants=True)
    assert generate_images(database, store, engine, lost, lambda _: None, None, plan) == GenerationOutcome(
        2, restored=2
    )
    assert [len(call) for call in engine.made] == [2, 2, 8, 2], "the warm-up, the two alone, and their calls"
    assert rows(database) == before and images_to_generate(database, store, plan).is_empty()


def test_no_guidance_reaches_the_engine_as_none_and_stays_null(database: Database, store: ImageStore) -> None:
    engine = Painter(giants=True)
    made(database, store, engine, planned(database, replace(SWEEP, guidance=None), 4))
    assert {request.guidance for call in engine.made for request in call} == {None}
    assert [row["guidance"] for row in rows(database).values()] == [None] * 4


def test_an_engines_first_call_is_in_no_images_time_and_rows_say_what_made_them(
    database: Database, store: ImageStore
) -> None:
    plan, engine = planned(database, SWEEP, 6), Painter(giants=True, slow_start=True)
    slot = ModelSlot()
    with slot:
        slot.get(registry.find_scorer("aesthetic_v1", Settings.read({})))
        made_on = describe_provenance(registry.find_scorer("aesthetic_v1", Settings.read({})), slot)
    generate_images(database, store, engine, plan.head(3), lambda _: None, made_on)
    generate_images(database, store, engine, plan.tail(3), lambda _: None, made_on)
    # Only the first pass warms it up.
    assert [request.steps for call in engine.made for request in call] == [2] * 3 + [4] * 6
    found = list(rows(database).values())
    assert max(row["elapsed_ms"] for row in found) < 60
    versions = {f"{name}_version": version(name) for name in ("torch", "diffusers", "transformers")}
    assert all(versions.items() <= row.items() for row in found)
    assert {(row["weights"], row["model_load_ms"], row["tf32_enabled"]) for row in found} == {
        (made_on["weights"], slot.load_ms, False)
    }
    assert slot.load_ms is not None and slot.load_ms > 0
    # Measured or missing: without a GPU there is none.
    assert {(row["gpu_name"], row["gpu_mem_peak_mb"]) for row in found} == {(None, None)}


def test_what_is_made_in_one_call_has_the_same_steps_and_size() -> None:
    sizes = [
        replace(SWEEP, steps=SettingRange(1, 3), width=width, height=height) for width, height in ((64, 64), (64, 128))
    ]
    plan = pl.concat([sweep.rows(0, 50) for sweep in sizes])
    found = list(chunk_plan(plan, 8))
    assert all(len({(row["steps"], row["width"], row["height"]) for row in chunk}) == 1 for chunk in found)
    assert sorted(row["image_id"] for chunk in found for row in chunk) == sorted(plan["image_id"])
    # As few calls as can be: but for the last of each kind they are full.
    assert max(map(len, found)) == 8
    assert sum(len(chunk) < 8 for chunk in found) <= 6


@pytest.mark.slow(seconds=15)
def test_the_command_makes_and_scores_the_others_and_ends_with_one_line_about_the_one_it_could_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    monkeypatch.setenv("FLEXY_DAGSTER_STORAGE", str(home / "dagster"))
    entries = registry._ENTRIES

    def engine(giants: bool) -> None:
        painter = ModelEntry("mini_painter", "engine", f"{__name__}:Painter", options={"giants": giants}, side=64)
        monkeypatch.setattr(registry, "_ENTRIES", (*entries, painter))
        monkeypatch.setitem(registry.MODELS, painter.name, painter)

    def flexy(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--json"], prog_name="flexy")

    engine(giants=False)
    prompts = home / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    new = flexy("sweep", "new", "--engine", "mini_painter", "--images", "8", "--steps", "2", "--prompts", str(prompts))
    run = json.loads(new.stdout)["run"]

    result = flexy("sweep", "run", run)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("flexy: 1 image could not be made: image ")
    assert "(64×64): out of memory for this image alone: use a smaller image, or more memory" in line
    found = rows(Database(Settings.read().database_url))
    assert {row["prompt"] for row in found.values()} == set(PROMPTS) - {"a giant"}
    assert all(row[metric] is not None for row in found.values() for metric in METRICS)
    assert all((home / "images" / path).exists() for path in found)
    answer = json.loads(result.stdout)
    assert (answer["images_made"], answer["images"], answer["scores_computed"]) == (7, 7, 28)
    assert Path(answer["report"]).exists()

    engine(giants=True)
    again = flexy("sweep", "run", run)
    assert (again.exit_code, again.stderr) == (0, "")
    assert [json.loads(again.stdout)[name] for name in ("images_made", "scores_computed")] == [1, 4]
