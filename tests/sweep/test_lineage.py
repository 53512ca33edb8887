"""A small sweep through the whole lineage: what is there afterwards, what is done again, what a hole costs."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from flexy_assets.cli.app import main
from flexy_assets.execution import run_assets
from flexy_assets.storage.scores import SCORES_SCHEMA
from resources.database import Database
from resources.engines import ImageRequest
from resources.models import registry
from resources.settings import Settings
from tests.support.tables import described_otherwise

pytestmark = pytest.mark.slow(seconds=110)

ROOT = Path(__file__).parent.parent.parent
METRICS = ("clip_score", "aesthetic_score", "aes_v2_score", "hps_v2_score")
SCORE_ASSETS = ("clip_scores", "aesthetic_scores", "aes_v2_scores", "hps_v2_scores")
TABLES = (
    *("metric_correlations", "metric_components", "sweep_times", "sweep_regression", "sweep_response", "sweep_effects"),
    *("diminishing_returns", "pareto_front", "sweet_spots", "sweep_comparison"),
)
SMALL = ("--engine", "mini_sdxl", "--steps", "1:2", "--batch-size", "4")


@dataclass(frozen=True)
class House:
    """A home, and the command run on it in this process."""

    home: Path
    environment: pytest.MonkeyPatch

    def flexy(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, prog_name="flexy")

    def answer(self, *arguments: str) -> dict[str, Any]:
        """The JSON document of a command that succeeds."""
        result = self.flexy(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def new(self, images: int, seed: int) -> dict[str, Any]:
        return self.answer("sweep", "new", *SMALL, "--images", str(images), "--seed", str(seed))

    @property
    def database(self) -> Database:
        return Database(Settings.read().database_url)

    def table(self, name: str) -> list[dict[str, Any]]:
        """Every row of a table, in the order of its key."""
        with self.database.begin(reading=True) as connection:
            return [dict(row) for row in connection.exec_driver_sql(f"SELECT * FROM {name} ORDER BY 1, 2").mappings()]

    def images(self, run: str) -> list[dict[str, Any]]:
        return [row for row in self.table("bench_run_results") if UUID(row["run_id"]) == UUID(run)]


def house(home: Path, environment: pytest.MonkeyPatch) -> House:
    for name in ("FLEXY_DATABASE_URL", "FLEXY_IMAGES"):
        environment.delenv(name, raising=False)
    environment.setenv("FLEXY_HOME", str(home))
    environment.setenv("FLEXY_MODELS", "mini")
    environment.setenv("DAGSTER_HOME", str(ROOT))
    environment.setenv("FLEXY_DAGSTER_STORAGE", str(home / "dagster"))
    return House(home, environment)


@dataclass(frozen=True)
class Finished:
    """A sweep of seven images in two batches, run to its end; another sweep's batch lies between the two."""

    home: Path
    plan: dict[str, Any]
    other: dict[str, Any]
    answer: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as environment:
        at = house(home, environment)
        at.new(4, seed=1)
        other = at.new(3, seed=2)
        plan = at.new(7, seed=1)
        return Finished(home, plan, other, at.answer("sweep", "run", plan["run"]))


@pytest.fixture
def at(finished: Finished, no_results: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """A copy of the finished sweep's home, to do with as a test likes; its results stay those of the finished sweep."""
    shutil.copytree(finished.home, tmp_path / "home")
    return house(tmp_path / "home", monkeypatch)


@pytest.fixture
def instance(at: House) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance the UI shows."""
    with dg.DagsterInstance.get() as instance:
        yield instance


# A finished sweep


def test_a_finished_sweep_has_every_image_with_its_file_and_four_scores(at: House, finished: Finished) -> None:
    assert (finished.answer["images_made"], finished.answer["scores_computed"]) == (7, 28)
    rows = at.images(finished.plan["run"])
    assert len(rows) == 7
    assert {row["steps"] for row in rows} <= {1, 2}
    for row in rows:
        assert hashlib.sha256((at.home / "images" / row["image_path"]).read_bytes()).hexdigest() == row["image_sha256"]
        assert all(isinstance(row[metric], float) for metric in METRICS)
    outcomes = at.table("image_scores")
    assert len(outcomes) == 28
    assert {outcome["attempts"] for outcome in outcomes} == {1}
    values = {(row["id"], metric): row[metric] for row in rows for metric in METRICS}
    assert {(outcome["image_id"], outcome["metric"]): outcome["value"] for outcome in outcomes} == values


def test_the_tables_lie_under_their_assets_names(at: House, finished: Finished) -> None:
    names = {path.name for path in (at.home / "assets").iterdir()}
    tables = ("sweep_plan", "sweep_scores", *TABLES)
    assert names == {*(f"{table}.parquet" for table in tables), "sweep.csv", "sweep_report.html"}
    assert described_otherwise(at.home / "assets") == []
    scores = pl.read_parquet(at.home / "assets" / "sweep_scores.parquet")
    assert scores.schema == pl.Schema(SCORES_SCHEMA)
    assert scores.select(METRICS).null_count().sum_horizontal().item() == 0
    rows = {UUID(row["id"]): row for row in at.images(finished.plan["run"])}
    assert {UUID(row["image_id"]) for row in scores.to_dicts()} == set(rows)
    for row in scores.to_dicts():
        assert all(row[metric] == rows[UUID(row["image_id"])][metric] for metric in METRICS)
    page = (at.home / "assets" / "sweep_report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html")
    assert page.count("UklGR") == 7, "the report shows a WebP, by its first letters, for every image"
    assert scores["created_at"].null_count() == 0 and f", {scores['created_at'][0]:%-d %B %Y}" in page
    assert "its embedding by mini_clip@" in page


def test_the_csv_is_flexyfaces_in_header_rows_and_order(at: House, finished: Finished) -> None:
    with (at.home / "assets" / "sweep.csv").open(newline="") as file:
        header, *lines = list(csv.reader(file))
    assert header == ["steps", "guidance", *METRICS, "elapsed_ms", "seed"]
    rows = sorted(at.images(finished.plan["run"]), key=lambda row: (row["steps"], row["guidance"]))
    assert [[float(cell) for cell in line] for line in lines] == [[float(row[name]) for name in header] for row in rows]


def test_dagster_shows_what_happened_to_each_batch_of_each_asset(
    finished: Finished, instance: dg.DagsterInstance
) -> None:
    for batch, images in zip(finished.plan["batches"], (4, 3), strict=True):
        for asset in ("generated_images", "clip_embeddings", *SCORE_ASSETS):
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[batch]), limit=1
            ).records
            assert records, f"{asset} {batch}"
            event = records[0].asset_materialization
            assert event is not None
            shown = {name: value.value for name, value in event.metadata.items()}
            if asset == "generated_images":
                assert (shown["images"], shown["images generated"]) == (images, images)
                assert shown["seconds per image"] > 0
                assert shown["contact sheet"].startswith(f"![{images} images](data:image/")
            elif asset == "clip_embeddings":
                assert (shown["images embedded"], shown["images failed"]) == (images, 0)
            else:
                assert (shown["scored"], shown["scores computed"], shown["missing"]) == (images, images, 0)
                assert shown["lowest"] <= shown["mean"] <= shown["highest"]


def test_another_runs_batch_between_two_of_a_runs_is_left_alone(
    at: House, finished: Finished, instance: dg.DagsterInstance
) -> None:
    first, second = finished.plan["batches"]
    assert instance.get_dynamic_partitions("seed_batches") == [first, *finished.other["batches"], second]
    assert at.images(finished.other["run"]) == []
    assert not instance.get_materialized_partitions(dg.AssetKey("generated_images")) - {first, second}


# Once more


def test_a_finished_sweep_that_is_run_again_makes_nothing_and_says_so(at: House, finished: Finished) -> None:
    before = at.table("bench_run_results"), at.table("image_scores"), at.table("image_embeddings")
    result = at.flexy("sweep", "run", finished.plan["run"][:8])
    assert result.exit_code == 0, result.output
    assert "0 images made, 0 scores computed now; 7 of 7 images there" in result.stdout
    assert (at.table("bench_run_results"), at.table("image_scores"), at.table("image_embeddings")) == before


def test_topping_a_run_up_makes_only_what_is_new(at: House, finished: Finished) -> None:
    rows, scores = at.images(finished.plan["run"]), at.table("image_scores")
    files = {path: path.stat().st_mtime_ns for path in (at.home / "images").rglob("*.png")}
    half_written = at.home / "images" / finished.plan["batches"][1] / ".000007.png.k7x_2m"
    half_written.write_bytes(b"what a killed run leaves")
    topped = at.new(9, seed=1)
    assert (topped["run"], topped["target"], topped["planned"]) == (finished.plan["run"], 9, 2)
    answer = at.answer("sweep", "run", topped["run"])
    assert (answer["images_made"], answer["scores_computed"], answer["images"]) == (2, 8, 9)
    assert [row for row in at.images(topped["run"]) if row in rows] == rows
    assert [score for score in at.table("image_scores") if score in scores] == scores
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert not half_written.exists()


def test_asking_for_fewer_images_than_there_are_takes_none_away(at: House, finished: Finished) -> None:
    again = at.new(2, seed=1)
    assert (again["run"], again["target"], again["planned"]) == (finished.plan["run"], 7, 0)


def test_an_image_file_that_is_gone_is_made_again_and_scored(
    at: House, finished: Finished, instance: dg.DagsterInstance
) -> None:
    from flexy_assets.definitions import build_definitions
    from flexy_assets.sweep import assets

    defs = build_definitions(Settings.read())

    (batch,) = finished.other["batches"]
    run_assets(instance, defs, [assets.generated_images], batches=(batch, batch))
    lost, *_ = before = sorted(at.images(finished.other["run"]), key=lambda row: row["image_path"])
    file = at.home / "images" / lost["image_path"]
    picture = file.read_bytes()
    file.unlink()

    result = at.flexy("sweep", "run", finished.other["run"])
    assert result.exit_code == 0, result.output
    assert "1 image made (1 of them lost before, bit for bit), 12 scores computed now; 3 of 3 images there" in (
        result.stdout
    )
    assert file.read_bytes() == picture
    after = {row["id"]: row for row in at.images(finished.other["run"])}
    assert all(isinstance(after[row["id"]][metric], float) for row in before for metric in METRICS)


# The launchpad


def test_materialising_the_plan_with_its_config_is_sweep_new(
    at: House, finished: Finished, instance: dg.DagsterInstance
) -> None:
    from flexy_assets.definitions import build_definitions

    defs = build_definitions(Settings.read())

    config = {"engine": "mini_sdxl", "images": 5, "steps": "1:2", "batch_size": 4, "seed": 3}
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey("sweep_plan")],
        run_config={"ops": {"sweep_plan": {"config": config}}},
    )
    assert result.success
    (event,) = result.asset_materializations_for_node("sweep_plan")
    run = event.metadata["sweep"].value
    batches = [f"{str(run)[:8]}_000{n}" for n in range(2)]
    assert instance.get_dynamic_partitions("seed_batches")[-2:] == batches
    plan = at.new(5, seed=3)
    assert plan == {"run": run, "engine": "mini_sdxl", "target": 5, "planned": 5, "batches": batches}


# The engine


def test_an_image_is_the_same_alone_and_among_others_and_guidance_below_one_is_none() -> None:
    engine = registry.find_engine("mini_sdxl", Settings.read({})).load()

    def request(seed: int, guidance: float) -> ImageRequest:
        return ImageRequest("a red disc", None, 2, guidance, seed, 64, 64)

    def make(*requests: ImageRequest) -> np.ndarray:
        return np.stack([np.asarray(image, dtype=np.int16) for image in engine.generate(requests)])

    # Sums in another order round differently: one grey level, seldom two.
    for guidance in (7.0, 1.0):
        alone = make(request(5, guidance))[0]
        among = make(request(4, 3.0), request(5, guidance), request(6, 12.0))
        assert np.abs(among[1] - alone).max() <= 2
        assert np.abs(among[0] - alone).max() > 8, "another seed and guidance is another picture"
    none, half = make(request(5, 1.0))[0], make(request(5, 0.5))[0]
    assert np.array_equal(none, half)
    assert np.abs(make(request(5, 7.0))[0] - none).max() > 2, "guidance above 1 does something"


def test_a_report_on_a_run_by_weights_of_ones_own_leaves_the_assets_as_they_are(at: House, finished: Finished) -> None:
    at.answer("sweep", "run", finished.other["run"])
    before = {path: path.read_bytes() for path in (at.home / "assets").iterdir()}
    file, weigh = at.home / "own.html", ("--weight", "hps_v2_score=2", "--least-gain", "clip_score=0.01")
    run = finished.plan["run"]
    answer = at.answer("report", run[:8], *weigh, "--out", str(file))
    assert (answer["file"], answer["images"]) == (str(file), 7)
    too_few = {"images": 7, "reason": "too few images (7; 10 needed)"}
    assert answer["engines"] == {"mini_sdxl": {"lead": None, "best": None, "region": None} | too_few}
    page = file.read_text()
    assert run in page and finished.other["run"] not in page
    assert at.answer("report", "--engine", "mini_sdxl", "--out", str(file))["images"] == 10
    assert {path: path.read_bytes() for path in (at.home / "assets").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "sd3"], "no images of engine 'sd3': flexy status"),
        (["--weight", "beauty=1"], "unknown metric 'beauty'"),
        (["--weight", "clip_score"], "invalid weight 'clip_score': write METRIC=N"),
        (["--least-gain", "clip_score=0"], "invalid least gain 0.0"),
        (["ffffffff"], "unknown sweep 'ffffffff': does not exist"),
    ],
)
def test_a_report_that_cannot_be_asked_for_is_refused_in_one_line(at: House, arguments: list[str], words: str) -> None:
    result = at.flexy("report", *arguments, "--out", str(at.home / "own.html"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert not (at.home / "own.html").exists()
