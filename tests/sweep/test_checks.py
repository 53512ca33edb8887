"""Sound data passes every check; each fault is told of by its own check, which says what to do, and by no other."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import dagster as dg
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from flexy_assets.execution import run_assets
from flexy_assets.storage import quality
from flexy_assets.storage.quality import RunTally
from flexy_assets.storage.runs import add_images, save_sweep
from flexy_assets.storage.scores import MAX_ATTEMPTS, ScoredImage, record_scores, request_rescore
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results
from flexy_assets.sweep.analysis import drift
from resources.database import Database
from resources.images import ImageStore, UnreadableImageError
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.settings import Settings
from tests.conftest import on_sqlite

Adder = Callable[..., list[UUID]]
SCORED = dict.fromkeys(METRIC_COLUMNS, 0.5)
OF_SCORES = ("known_maker", "in_range", "no_missing_scores", "no_drift")
OF_IMAGES = tuple(f"generated_images:{check}" for check in ("files_as_recorded", "no_unnamed_files", "no_duplicates"))
ALL = {*OF_IMAGES, *(f"{metric}s:{check}" for metric in METRICS for check in OF_SCORES)}
PATH = "4b7193fd_0000/000000.png"


@dataclass(frozen=True)
class House:
    """A home with one sound image file, and Dagster's checks of the rows in its database."""

    home: Path
    database: Database
    environment: pytest.MonkeyPatch
    sha256: str

    def definitions(self) -> dg.Definitions:
        from flexy_assets.definitions import build_definitions

        return build_definitions(Settings.read())

    def checked(self, *only: str) -> dict[str, Any]:
        """What Dagster has recorded, by asset and check, after one run of all checks or of some."""
        keys = {name: dg.AssetCheckKey.from_user_string(name) for name in ALL}
        asked = [keys[name] for name in only or ALL]
        job = dg.define_asset_job("checks", selection=dg.AssetSelection.checks(*asked))
        defs = dg.Definitions.merge(self.definitions(), dg.Definitions(jobs=[job]))
        with dg.DagsterInstance.ephemeral() as instance:
            assert defs.resolve_job_def("checks").execute_in_process(instance=instance).success
            records = {name: instance.get_latest_asset_check_evaluation_record(key) for name, key in keys.items()}
        return {name: record.evaluation for name, record in records.items() if record}

    def failed(self) -> dict[str, Any]:
        """Those that did not pass."""
        checked = self.checked()
        assert set(checked) == ALL
        return {name: check for name, check in checked.items() if not check.passed}

    def the_failed(self, name: str, severity: str) -> Any:
        """The one check that did not pass; it says so in one line."""
        failed = self.failed()
        assert set(failed) == {name}
        assert failed[name].severity.value == severity
        assert "\n" not in failed[name].description
        return failed[name]

    def change(self, image_id: UUID, **columns: Any) -> None:
        with self.database.begin() as connection:
            images = bench_run_results
            connection.execute(update(images).where(images.c.id == image_id).values(**columns))

    def run(self, began: int, scores: list[float], engine: str = "mini_sdxl") -> UUID:
        """A run with one image a clip score, the first made `began` days after the first run's."""
        run_id, start = uuid4(), datetime(2025, 1, 1) + timedelta(days=began)
        with self.database.begin() as connection:
            save_sweep(connection, run_id, engine, len(scores), {})
            rows = [
                {"id": uuid4(), "run_id": run_id, "engine": engine, "created_at": start + timedelta(seconds=place)}
                | {"image_path": PATH, "image_sha256": self.sha256}
                | SCORED
                | {"clip_score": score}
                for place, score in enumerate(scores)
            ]
            add_images(connection, rows)
        return run_id


@pytest.fixture
def empty_house(home: Path, empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("FLEXY_DATABASE_URL", empty_database.url.render_as_string(hide_password=False))
    sha256 = ImageStore(str(home / "images")).write(PATH, Image.new("RGB", (8, 8), "red"))
    return House(home, empty_database, monkeypatch, sha256)


@pytest.fixture
def house(empty_house: House, database: Database) -> House:
    return empty_house


@pytest.fixture
def sound(house: House, add: Adder) -> Callable[..., list[UUID]]:
    """`sound(count, **columns)` adds images that lack nothing."""
    whole = {"image_path": PATH, "image_sha256": house.sha256, **SCORED}
    return lambda count=3, **columns: add(count, **whole | columns)


# All is well


def test_sound_rows_pass_every_check(house: House, sound: Adder) -> None:
    sound(3, seed=None)
    sound(1, seed=7)
    checked = house.checked()
    assert set(checked) == ALL
    assert all(check.passed for check in checked.values())
    assert checked["clip_scores:in_range"].metadata["scored"].value == 4
    assert checked["generated_images:files_as_recorded"].metadata["checked"].value == "all 4 images"


def test_a_database_that_nobody_has_used_passes(empty_house: House) -> None:
    shutil.rmtree(empty_house.home / "images")
    assert empty_house.failed() == {}


@on_sqlite
def test_a_check_asked_for_alone_runs_alone(house: House, sound: Adder) -> None:
    sound()
    for name in ("clip_scores:no_missing_scores", "generated_images:no_duplicates"):
        assert set(house.checked(name)) == {name}


# Score ranges


@pytest.mark.parametrize("value", [1.2, -1.0001, math.inf, -math.inf])
def test_a_score_outside_its_bounds_is_named(house: House, sound: Adder, value: float) -> None:
    wrong, *_ = sound()
    house.change(wrong, clip_score=value)
    found = house.the_failed("clip_scores:in_range", "ERROR")
    assert "1 of 3 scores are outside -1 to 1" in found.description
    assert "flexy rescore clip_score" in found.description
    assert found.metadata["outside"].value == 1
    assert (found.metadata["lowest"].value, found.metadata["highest"].value) == (0.5, 0.5)
    assert str(wrong) in found.metadata["first rows"].value
    assert str(value) in found.metadata["first rows"].value


def test_a_nan_is_out_of_range_where_the_database_can_hold_one_and_a_hole_where_not(house: House, sound: Adder) -> None:
    wrong, *_ = sound()
    house.change(wrong, hps_v2_score=math.nan)
    on_postgres = house.database.url.get_backend_name() == "postgresql"
    found = house.failed()
    assert set(found) == {"hps_v2_scores:in_range" if on_postgres else "hps_v2_scores:no_missing_scores"}


@on_sqlite
def test_bounds_belong_to_the_range(house: House, sound: Adder) -> None:
    for low in (METRICS[name].low for name in METRIC_COLUMNS):
        sound(1, **dict.fromkeys(METRIC_COLUMNS, max(low, -1.0)))
    sound(1, clip_score=1.0, hps_v2_score=1.0, aesthetic_score=15.0, aes_v2_score=-5.0)
    assert house.failed() == {}


# Holes


def test_a_hole_is_counted_and_healing_named(house: House, sound: Adder) -> None:
    sound(3)
    sound(2, aes_v2_score=None)
    found = house.the_failed("aes_v2_scores:no_missing_scores", "WARN")
    assert found.description == "2 scores are missing: run `flexy backfill` or wait for the nightly schedule"
    assert [found.metadata[name].value for name in ("missing", "failed", "attempts exhausted")] == [2, 0, 0]


@on_sqlite
def test_a_hole_that_was_given_up_is_told_apart_with_its_reason(house: House, sound: Adder) -> None:
    sound(3)
    given_up, tried, _ = sound(3, clip_score=None)
    for attempt in range(MAX_ATTEMPTS):
        failing = [ScoredImage(given_up, None, "no prompt:\nnobody knows it")]
        failing += [ScoredImage(tried, None, "the file is gone")] if attempt == 0 else []
        with house.database.begin() as connection:
            record_scores(connection, "clip_score", "test", failing)
    found = house.the_failed("clip_scores:no_missing_scores", "WARN")
    assert found.description.startswith(
        f"3 scores are missing, 1 of them with attempts exhausted ({MAX_ATTEMPTS})"
        " (last error: no prompt: nobody knows it): run `flexy backfill`"
    )
    assert "flexy rescore clip_score --failed" in found.description
    assert [found.metadata[name].value for name in ("missing", "failed", "attempts exhausted")] == [3, 2, 1]


@on_sqlite
def test_where_all_holes_were_given_up_healing_is_not_advised(house: House, sound: Adder) -> None:
    (given_up,) = sound(1, clip_score=None)
    for _ in range(MAX_ATTEMPTS):
        with house.database.begin() as connection:
            record_scores(connection, "clip_score", "test", [ScoredImage(given_up, None, "no prompt")])
    found = house.the_failed("clip_scores:no_missing_scores", "WARN")
    assert "flexy backfill" not in found.description
    with house.database.begin() as connection:
        settings = Settings.read({"FLEXY_MODELS": "mini"})
        request_rescore(connection, METRICS["clip_score"], [], True, settings)
    assert "flexy backfill" in house.the_failed("clip_scores:no_missing_scores", "WARN").description


@on_sqlite
def test_what_other_models_are_to_score_is_no_hole(house: House, sound: Adder) -> None:
    sound(3)
    sound(2, engine="realvis_xl", clip_score=None)
    assert house.failed() == {}
    house.environment.setenv("FLEXY_MODELS", "full")
    assert house.the_failed("clip_scores:no_missing_scores", "WARN").metadata["missing"].value == 2


def test_a_metric_without_a_column_is_judged_by_what_is_recorded_of_it(database: Database, add: Adder) -> None:
    metric = Metric("quality", "Quality", "how good it is", 0, 10)
    good, bad, _ = add(3)
    with database.begin() as connection:
        record_scores(connection, "quality", "test", [ScoredImage(good, 7.0), ScoredImage(bad, 11.0)])
        (tally,) = quality.run_tallies(connection, metric)
        assert (tally.count, tally.outside, tally.total, tally.lowest) == (1, 1, 7.0, 7.0)
        assert [row.id for row in quality.images_out_of_range(connection, metric, 5)] == [bad]
        assert quality.missing_scores_of(connection, "quality", "mini").missing == 1


# Files

FILES = "generated_images:files_as_recorded"


@on_sqlite
def test_a_file_that_is_gone_is_named(house: House, sound: Adder) -> None:
    sound(2)
    (lost,) = sound(1, image_path="4b7193fd_0000/000009.png")
    found = house.the_failed(FILES, "ERROR")
    assert "1 files are missing or changed" in found.description
    assert "flexy sweep run, or restore them" in found.description
    for words in (str(lost), "4b7193fd_0000/000009.png", "No such file"):
        assert words in found.metadata["first rows"].value


@on_sqlite
def test_a_file_that_no_row_names_is_found(house: House, sound: Adder) -> None:
    images = ImageStore(str(house.home / "images"))
    sound(1)
    sound(1, image_path=f"{images.own_prefixes()[0]}/full.png", image_sha256=None)
    for path in ("full.png", "faces/extra.png"):
        images.write(path, Image.new("RGB", (8, 8)))
    found = house.the_failed("generated_images:no_unnamed_files", "WARN")
    assert "1 of 3 files below" in found.description
    assert "for example faces/extra.png" in found.description


@on_sqlite
def test_a_file_that_was_altered_is_told_by_its_hash_and_only_where_one_is_recorded(house: House, sound: Adder) -> None:
    other = "4b7193fd_0000/000001.png"
    ImageStore(str(house.home / "images")).write(other, Image.new("RGB", (8, 8), "blue"))
    (altered,) = sound(1, image_path=other)
    sound(1, image_path=other, image_sha256=None)
    sound(1, image_sha256=None)
    found = house.the_failed(FILES, "ERROR")
    assert found.metadata["missing or changed"].value == 1
    assert found.metadata["with a recorded hash"].value == 1
    assert f"{altered} " in found.metadata["first rows"].value
    assert "SHA-256 differs" in found.metadata["first rows"].value


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "outside the image root"),
        ("/etc/hostname", "outside the image root"),
        (None, "no image path is recorded"),
    ],
)
def test_a_path_that_leads_nowhere_it_may_is_an_offender(
    house: House, sound: Adder, path: str | None, reason: str
) -> None:
    (house.home / "secret.png").write_bytes(b"not an image of ours")
    sound(2)
    sound(1, image_path=path, image_sha256=None)
    assert reason in house.the_failed(FILES, "ERROR").metadata["first rows"].value


@on_sqlite
def test_a_root_that_is_not_there_is_one_fault_and_not_one_a_file(house: House, sound: Adder) -> None:
    sound(3)
    house.environment.setenv("FLEXY_IMAGES", str(house.home / "elsewhere"))
    found = house.the_failed(FILES, "ERROR")
    assert "set FLEXY_IMAGES" in found.description
    assert str(house.home / "elsewhere") in found.description
    assert "first rows" not in found.metadata


@on_sqlite
def test_of_many_files_a_random_sample_is_looked_at_and_said_so(house: House, sound: Adder) -> None:
    from flexy_assets.sweep import checks

    ids = sound(20)
    sound(1, image_path="4b7193fd_0000/000009.png")
    house.environment.setattr(checks, "MAX_FILES", 20)
    found = house.checked(FILES)[FILES]
    assert found.metadata["checked"].value == "a random 20 of 21 images"
    seen = set()
    with house.database.begin(reading=True) as connection:
        for _ in range(60):
            count, rows = quality.recorded_files(connection, 5)
            assert (count, len({row.id for row in rows})) == (21, 5)
            seen |= {row.id for row in rows}
    assert set(ids) <= seen


def test_files_are_verified_on_a_remote_root_too() -> None:
    store = ImageStore(f"memory://{uuid4().hex}")
    sha256 = store.write(PATH, Image.new("RGB", (8, 8), "red"))
    gone, altered, sound, unrecorded = store.verify_many(
        [("gone.png", None), (PATH, hashlib.sha256(b"").hexdigest()), (PATH, sha256), (PATH, None)]
    )
    assert isinstance(gone, UnreadableImageError)
    assert isinstance(altered, UnreadableImageError)
    assert sound is unrecorded is None


# Duplicates

DUPLICATES = "generated_images:no_duplicates"
SETTINGS = {"seed": 7, "steps": 8, "guidance": 2.5, "width": 512, "height": 512, "negative_prompt": None}


def test_rows_of_one_seed_and_the_same_settings_are_duplicates(house: House, sound: Adder) -> None:
    sound(3, **SETTINGS)
    sound(2, **SETTINGS | {"seed": 8})
    sound(1, **SETTINGS | {"seed": 9})
    found = house.the_failed(DUPLICATES, "WARN")
    assert "2 images are duplicated (3 surplus rows)" in found.description
    assert [found.metadata[name].value for name in ("duplicated images", "surplus rows")] == [2, 3]
    header, _, most, second = found.metadata["most duplicated"].value.splitlines()
    assert "| seed |" in header
    assert "| 7 | 512 | 512 | 3 |" in most
    assert "| 8 | 512 | 512 | 2 |" in second


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"steps": 9},
        {"guidance": 2.6},
        {"width": 640},
        {"height": 640},
        {"prompt": "a blue disc"},
        {"negative_prompt": "blurred"},
        {"engine": "mini_other"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_rows_that_differ_in_any_setting_are_no_duplicates(house: House, sound: Adder, other: dict[str, Any]) -> None:
    sound(1, **SETTINGS)
    sound(1, **SETTINGS | other)
    assert house.checked(DUPLICATES)[DUPLICATES].passed


@on_sqlite
def test_rows_without_a_seed_are_no_duplicates(house: House, sound: Adder) -> None:
    sound(5, **SETTINGS | {"seed": None})
    assert house.failed() == {}


def test_prompts_are_compared_where_the_user_says_they_are(house: House, sound: Adder) -> None:
    # Another column than usual; ours, which comes first, is empty.
    sound(1, **SETTINGS | {"prompt": None, "batch": "a red disc"})
    sound(1, **SETTINGS | {"prompt": None, "batch": "a blue disc"})
    assert not house.checked(DUPLICATES)[DUPLICATES].passed
    house.environment.setenv("FLEXY_PROMPT_COLUMN", "batch")
    assert house.checked(DUPLICATES)[DUPLICATES].passed
    sound(1, **SETTINGS | {"prompt": None, "batch": "a blue disc"})
    assert "| a blue disc |" in house.checked(DUPLICATES)[DUPLICATES].metadata["most duplicated"].value


# Drift

DRIFT = "clip_scores:no_drift"


def drawn(count: int, mean: float = 0.25, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(mean, 0.02, count).clip(-1, 1).tolist()


def test_a_run_whose_mean_moved_is_told_of_with_what_it_was_before(house: House) -> None:
    house.run(0, drawn(60, seed=1))
    house.run(1, drawn(60, seed=2))
    moved = house.run(2, drawn(60, 0.22, seed=3))
    house.run(0, drawn(60, 0.4), engine="mini_other")
    found = house.the_failed(DRIFT, "WARN")
    assert f"in sweep {moved.hex[:8]}" in found.description
    assert "mini_sdxl 0.2" in found.description
    assert "mini_other" not in found.description
    (row,) = found.metadata["compared"].value.splitlines()[2:]
    assert f"| {moved} | 60 |" in row
    assert "| 120 |" in row


@on_sqlite
def test_a_run_that_drifted_is_forgotten_when_a_newer_one_is_as_ever(house: House) -> None:
    house.run(0, drawn(300, seed=1))
    house.run(1, drawn(40, 0.22, seed=2))
    house.run(2, drawn(60, seed=3))
    assert house.failed() == {}


def test_impossible_scores_are_left_out_of_means(house: House) -> None:
    house.run(0, drawn(60, seed=1))
    house.run(1, [*drawn(57, seed=2), 50.0, math.inf, -math.inf])
    assert set(house.failed()) == {"clip_scores:in_range"}


CLIP = METRICS["clip_score"]


def tally(scores: np.ndarray | list[float], began: int, engine: str = "mini_sdxl") -> RunTally:
    values = np.asarray(scores, dtype=float)
    start = datetime(2025, 1, 1) + timedelta(days=began)
    sums = float(values.sum()), float((values**2).sum())
    return RunTally(engine, uuid4(), start, 0, len(values), *sums, float(values.min()), float(values.max()))


def drifted(*tallies: RunTally) -> bool:
    return any(one.is_real for one in drift.find_drifts(tallies, CLIP))


def test_runs_of_one_distribution_do_not_drift() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3_000):
        counts = rng.integers(drift.MIN_IMAGES_PER_RUN, 400, size=rng.integers(2, 5))
        spread = rng.choice([0.001, 0.02, 0.2])
        assert not drifted(*(tally(rng.normal(0.25, spread, n), day) for day, n in enumerate(counts)))


def test_a_move_of_one_standard_deviation_is_seen_and_one_of_a_quarter_is_not() -> None:
    rng = np.random.default_rng(0)
    for sign in (-1, 1):
        for _ in range(200):
            earlier = tally(rng.normal(0.25, 0.02, 1_000), 0)
            assert drifted(earlier, tally(rng.normal(0.25 + sign * 0.02, 0.02, 200), 1))
            # So many that chance is out of the question: a difference, but a small one.
            assert not drifted(earlier, tally(rng.normal(0.25 + sign * 0.005, 0.02, 100_000), 1))


def test_a_large_difference_that_chance_can_make_is_none() -> None:
    wide = np.tile([0.0, 0.4], 15)
    (found,) = drift.find_drifts([tally(wide, 0), tally(wide + 0.15, 1)], CLIP)
    assert found.d > drift.MIN_EFFECT_SIZE
    assert not found.is_real


def test_runs_of_few_images_are_neither_judged_nor_judged_by() -> None:
    few, many = tally([0.9] * (drift.MIN_IMAGES_PER_RUN - 1), 1), tally(drawn(500), 0)
    assert drift.find_drifts([many, few], CLIP) == []
    assert drift.find_drifts([replace(many, began=few.began), replace(few, began=many.began)], CLIP) == []


def test_rows_that_belong_to_no_run_are_not_compared() -> None:
    assert drift.find_drifts([replace(tally(drawn(50, 0.9), 0), run_id=None), tally(drawn(50), 1)], CLIP) == []


def test_the_newest_run_is_the_one_begun_last_and_one_without_a_date_is_old() -> None:
    old, new = tally(drawn(50), 0), tally(drawn(50, 0.4), 1)
    for tallies in ([old, new], [new, old], [replace(old, began=None), new]):
        (found,) = drift.find_drifts(tallies, CLIP)
        assert found.run_id == new.run_id


def test_scores_that_never_vary_drift_only_when_they_change() -> None:
    for value in (0.1, 0.25, 1 / 3, -0.7):
        runs = [tally([value] * n, day) for day, n in enumerate((31, 57, 1_000))]
        assert not drifted(*runs)
        assert drifted(*runs, tally([value + 0.001] * 40, 9))


def test_sums_by_the_database_give_the_moments_that_numpy_gives(house: House) -> None:
    before, after = drawn(200, seed=1), drawn(150, 0.26, seed=2)
    house.run(0, before)
    newest = house.run(1, after)
    with house.database.begin(reading=True) as connection:
        (found,) = drift.find_drifts(quality.run_tallies(connection, CLIP), CLIP)
    spread = math.sqrt((199 * np.var(before, ddof=1) + 149 * np.var(after, ddof=1)) / 348)
    errors = math.sqrt(np.var(before, ddof=1) / 200 + np.var(after, ddof=1) / 150)
    difference = np.mean(after) - np.mean(before)
    assert found.run_id == newest
    assert (found.mean, found.earlier_mean) == pytest.approx((np.mean(after), np.mean(before)))
    assert (found.z, found.d) == pytest.approx((difference / errors, difference / spread))


# In Dagster


@on_sqlite
def test_every_metric_has_its_checks_and_they_take_two_steps(house: House) -> None:
    defs = house.definitions()
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.asset_check_keys} == ALL
    assert all(graph.get_check_spec(key).description for key in graph.asset_check_keys)
    results = defs.resolve_job_def("results")
    assert {key.to_user_string() for key in results.asset_layer.asset_graph.asset_check_keys} == ALL
    assert {node.name for node in results.nodes if node.name.endswith("_checks")} == {"image_checks", "score_checks"}


@on_sqlite
def test_checks_come_after_the_results(house: House, sound: Adder) -> None:
    sound(3, guidance=2.5, elapsed_ms=100)
    with dg.DagsterInstance.ephemeral() as instance:
        result = house.definitions().resolve_job_def("results").execute_in_process(instance=instance)
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert len(steps) == 9
    assert set(steps[-2:]) == {"image_checks", "score_checks"}
    assert len(result.get_asset_check_evaluations()) == len(ALL)


def test_a_run_over_batches_leaves_the_checks_to_the_results() -> None:
    @dg.asset
    def pictures() -> None: ...

    @dg.asset_check(asset=pictures)
    def of_the_whole_table() -> dg.AssetCheckResult:
        raise AssertionError("a sweep makes many such runs")

    defs = dg.Definitions(assets=[pictures], asset_checks=[of_the_whole_table])
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_assets(instance, defs, [pictures])
        assert result.success
        assert [run.asset_selection for run in instance.get_runs()] == [{pictures.key}]
        assert instance.get_latest_asset_check_evaluation_record(of_the_whole_table.check_key) is None
