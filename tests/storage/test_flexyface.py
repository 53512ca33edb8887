"""Rows that Flexy adds to FlexyFace's tables: every NOT NULL held, and the columns that its pages read kept true."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from flexy_assets.storage.adoption import adopt_rows
from flexy_assets.storage.flexyface import check_required_columns, record_run_status
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import add_images, save_sweep
from flexy_assets.storage.scores import ScoredImage, read_scores, record_scores
from flexy_assets.sweep.plan import SettingRange, Sweep
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.settings import Settings
from tests.conftest import on_postgres
from tests.support import flexyface

SWEEP = Sweep("mini_sdxl", ("a red disc",), SettingRange(4, 60), SettingRange(0.5, 12))


@pytest.fixture
def adopted(empty_database: Database, tmp_path: Path) -> Database:
    """FlexyFace's tables with a sweep of three images, adopted."""
    flexyface.bring(empty_database, tmp_path / "pictures", (3,), 1)
    migrate(empty_database)
    return empty_database


def select(database: Database, statement: str) -> list[dict[str, Any]]:
    with database.begin(reading=True) as connection:
        return [dict(row) for row in connection.execute(sa.text(statement)).mappings()]


def plan_sweep(database: Database, target: int, sweep: Sweep = SWEEP) -> None:
    with database.begin() as connection:
        check_required_columns(connection)
        save_sweep(connection, sweep.run_id, sweep.engine, target, sweep.to_json())


def make_images(database: Database, count: int, **columns: Any) -> list[UUID]:
    ids = [uuid4() for _ in range(count)]
    fixed = {"run_id": SWEEP.run_id, "engine": "mini_sdxl", "batch": "b", "prompt": "a red disc", "steps": 8}
    fixed |= {"guidance": 2.0, "seed": 2**31 - 1, "width": 64, "height": 64, "elapsed_ms": 7, "tf32_enabled": False}
    with database.begin() as connection:
        add_images(connection, [fixed | {"id": i, "image_path": f"{i}.png"} | columns for i in ids])
        record_run_status(connection, SWEEP.run_id)
    return ids


def test_a_sweep_has_a_title_and_a_status_and_is_done_with_its_last_image(adopted: Database) -> None:
    plan_sweep(adopted, 2)
    runs = "SELECT prompt, prompt_length, status, current_engine, resolution FROM bench_runs WHERE plan IS NOT NULL"
    title = "Parameter sweep: 2 images, steps (4, 60), guidance (0.5, 12.0)"
    row = {"prompt": title, "prompt_length": len(title), "current_engine": "mini_sdxl", "resolution": 512}
    assert select(adopted, runs) == [row | {"status": "queued"}]
    statuses = []
    for _ in range(2):
        make_images(adopted, 1)
        statuses.append(select(adopted, runs)[0]["status"])
    assert statuses == ["running", "done"]
    plan_sweep(adopted, 3)
    make_images(adopted, 0)
    assert select(adopted, runs)[0]["status"] == "running"
    (theirs,) = select(adopted, "SELECT prompt, status FROM bench_runs WHERE plan IS NULL")
    assert theirs == {"prompt": "Parameter sweep: 3 images, steps (4, 60), guidance (0.5, 12.0)", "status": "done"}


def test_an_engine_without_guidance_has_guidance_0_where_the_column_must_not_be_null(adopted: Database) -> None:
    plan_sweep(adopted, 1)
    (image,) = make_images(adopted, 1, guidance=None)
    with adopted.begin(reading=True) as connection:
        row = connection.execute(
            sa.text("SELECT guidance, tf32_enabled FROM bench_run_results WHERE image_path = :path"),
            {"path": f"{image}.png"},
        ).one()
    assert (row[0], bool(row[1])) == (0.0, False)


def test_the_metrics_status_is_complete_with_both_scores_and_error_with_a_failed_one(adopted: Database) -> None:
    plan_sweep(adopted, 2)
    scored, failed = make_images(adopted, 2)

    def statuses() -> list[str]:
        rows = select(adopted, "SELECT image_path, metrics_status FROM bench_run_results WHERE batch = 'b'")
        by_path = {row["image_path"]: row["metrics_status"] for row in rows}
        return [by_path[f"{image}.png"] for image in (scored, failed)]

    def record(metric: str, *scores: ScoredImage) -> None:
        with adopted.begin() as connection:
            record_scores(connection, metric, "a scorer", scores)

    assert statuses() == ["pending", "pending"]
    record("hps_v2_score", ScoredImage(scored, 0.25))
    record("clip_score", ScoredImage(scored, 0.3), ScoredImage(failed, None, "no prompt"))
    assert statuses() == ["pending", "error"]
    record("aesthetic_score", ScoredImage(scored, 5.5), ScoredImage(failed, 6.0))
    assert statuses() == ["complete", "pending"]
    record("clip_score", ScoredImage(failed, 0.2))
    assert statuses() == ["complete", "complete"]
    updated = select(
        adopted, "SELECT metrics_updated_at IS NULL AS never, count(*) AS n FROM bench_run_results GROUP BY 1"
    )
    assert {bool(row["never"]): row["n"] for row in updated} == {True: 3, False: 2}, "FlexyFace's rows are as they were"


def test_a_column_that_needs_a_value_flexy_has_none_for_is_named_before_anything_is_made(
    empty_database: Database, tmp_path: Path
) -> None:
    flexyface.bring(empty_database, tmp_path / "pictures", (1,), 1)
    with empty_database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE bench_run_results ADD COLUMN reviewer TEXT NOT NULL DEFAULT 'nobody'")
    migrate(empty_database)
    plan_sweep(empty_database, 1)
    if empty_database.url.get_backend_name() == "sqlite":  # which drops no default
        return
    with empty_database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE bench_run_results ALTER COLUMN reviewer DROP DEFAULT")
    empty_database.engine.dispose()
    other = Database(empty_database.url.render_as_string(hide_password=False))
    with pytest.raises(BadInputError, match=r"bench_run_results\.reviewer must have a value.*SET DEFAULT"):
        plan_sweep(other, 5)
    assert [run["target"] for run in select(other, "SELECT target FROM bench_runs WHERE plan IS NOT NULL")] == [1]
    other.engine.dispose()


@on_postgres
def test_a_value_that_the_table_refuses_in_silence_is_an_error(adopted: Database) -> None:
    with adopted.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE UPDATE ON bench_run_results FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        image = connection.scalar(sa.text("SELECT id FROM bench_run_results WHERE clip_score IS NULL LIMIT 1"))
    with (
        pytest.raises(FlexyError, match="took 0 of 1 values of clip_score: row-level security or a trigger"),
        adopted.begin() as connection,
    ):
        record_scores(connection, "clip_score", "a scorer", [ScoredImage(image, 0.3)])
    assert select(adopted, "SELECT count(*) AS n FROM image_scores") == [{"n": 0}]


@on_postgres
def test_times_are_utc_whatever_zone_the_server_has(adopted: Database) -> None:
    with adopted.begin() as connection:
        connection.exec_driver_sql("ALTER ROLE CURRENT_USER SET timezone = 'Asia/Tokyo'")
    other = Database(adopted.url.render_as_string(hide_password=False))
    plan_sweep(other, 1)
    (row,) = select(other, "SELECT abs(extract(epoch FROM now() - created_at)) AS age FROM bench_runs WHERE plan <> ''")
    assert row["age"] < 300
    with other.begin() as connection:
        connection.exec_driver_sql("ALTER ROLE CURRENT_USER RESET timezone")
    other.engine.dispose()


# Titles


def adopt(database: Database, column: str) -> int:
    return adopt_rows(database, Settings.read({"FLEXY_MODELS": "mini", "FLEXY_PROMPT_COLUMN": column}))


@pytest.mark.parametrize("column", ["bench_runs.prompt", "caption"])
def test_a_title_is_not_taken_for_the_prompt_of_its_images(
    empty_database: Database, tmp_path: Path, column: str
) -> None:
    """A sandbox run, of one prompt and few images, goes on; so does a sweep whose images have a prompt of ours."""
    flexyface.bring(empty_database, tmp_path / "pictures", (17, 16), 1)
    migrate(empty_database)
    run = "(SELECT run_id FROM bench_run_results GROUP BY run_id HAVING count(*) = 17)"
    table, _, name = column.rpartition(".")
    with empty_database.begin() as connection:
        if not table:
            table = "bench_run_results"
            connection.exec_driver_sql("ALTER TABLE bench_run_results ADD COLUMN caption TEXT")
            titles = "SELECT prompt FROM bench_runs WHERE bench_runs.id = run_id"
            connection.exec_driver_sql(f"UPDATE bench_run_results SET caption = ({titles})")
        connection.exec_driver_sql("UPDATE bench_run_results SET prompt = NULL")
    with pytest.raises(BadInputError) as refused:
        adopt(empty_database, column)
    assert str(refused.value) == (
        f"the column {table}.{name} says 'Parameter sweep: 17 images, steps (4, 60), guidance (0.5, …' of 17 images"
        " with 17 seeds: it is a title, not a prompt: recover the prompts with flexy prompts recover FILE, or name"
        " another column in FLEXY_PROMPT_COLUMN"
    )
    with empty_database.begin() as connection:
        one = f"SELECT min(image_path) FROM bench_run_results WHERE run_id = {run}"
        known = f"UPDATE bench_run_results SET prompt_confidence = 0.5 WHERE run_id = {run} AND image_path = ({one})"
        connection.exec_driver_sql(known)
        rest = f"UPDATE bench_run_results SET prompt = 'a red circle' WHERE run_id = {run} AND image_path <> ({one})"
        connection.exec_driver_sql(rest)
    assert adopt(empty_database, column) == 33
    with empty_database.begin(reading=True) as connection:
        prompts = read_scores(connection, Settings.read({"FLEXY_PROMPT_COLUMN": column}))["prompt"].to_list()
    # The image whose prompt could not be recovered has no prompt.
    assert (prompts.count("a red circle"), prompts.count(None), len(set(prompts))) == (16, 1, 3)


def test_one_prompt_at_few_seeds_is_a_prompt(empty_database: Database, tmp_path: Path) -> None:
    flexyface.bring(empty_database, tmp_path / "pictures", (20,), 1)
    with empty_database.begin() as connection:
        connection.exec_driver_sql("UPDATE bench_run_results SET prompt = NULL, seed = steps / 20")
    assert adopt(empty_database, "bench_runs.prompt") == 20
