"""The command on a FlexyFace database: backfill computes missing scores, rescore replaces what was confirmed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from resources.database import Database
from resources.images import ImageStore
from tests.conftest import Flexy, on_postgres
from tests.support import flexyface

pytestmark = pytest.mark.slow(seconds=80)

IMAGES, SCORED = 24, 20


@pytest.fixture
def adopted(empty_database: Database, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A FlexyFace database of two runs, most of it with two of the scores, on SQLite and on Postgres."""
    flexyface.bring(empty_database, home / "pictures", (16, 8), SCORED)
    monkeypatch.setenv("FLEXY_DATABASE_URL", empty_database.url.render_as_string(hide_password=False))
    monkeypatch.setenv("FLEXY_IMAGES", str(home / "pictures"))
    monkeypatch.setenv("FLEXY_PROMPT_COLUMN", flexyface.PROMPT_COLUMN)
    yield empty_database


def answer(flexy: Flexy, *arguments: str) -> dict[str, Any]:
    result = flexy(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def column(database: Database, name: str) -> dict[str, float | None]:
    """The column by image path."""
    with database.begin(reading=True) as connection:
        rows = connection.execute(sa.text(f"SELECT image_path, {name} FROM bench_run_results"))
        return {row[0]: row[1] for row in rows}


@on_postgres
def test_backfill_computes_what_is_missing_and_replaces_nothing(
    flexy: Flexy, results: None, adopted: Database, home: Path
) -> None:
    before = column(adopted, "clip_score")
    answered = answer(flexy, "backfill")
    assert answered["filled"] == {
        "clip_score": IMAGES - SCORED,
        "aesthetic_score": IMAGES - SCORED,
        "aes_v2_score": IMAGES,
        "hps_v2_score": IMAGES,
    }
    assert answered["scores_computed"] == 2 * (IMAGES - SCORED) + 2 * IMAGES
    after = column(adopted, "clip_score")
    assert {path: after[path] for path, value in before.items() if value is not None} == {
        path: value for path, value in before.items() if value is not None
    }
    assert None not in after.values()
    assert (home / "assets" / "sweep.csv").read_text().count("\n") == IMAGES + 1
    assert (home / "assets" / "sweep_report.html").exists()
    again = answer(flexy, "backfill")
    assert again["scores_computed"] == 0
    assert "no scores are missing" in flexy("backfill").stdout

    found = answer(flexy, "status")
    assert found["totals"] == {"images": IMAGES, "runs": 2, "complete": IMAGES}
    shown = flexy("status").stdout
    for heading in ("scores", "sweeps", "by steps (means)", "newest"):
        assert f"\n{heading}\n" in shown
    with adopted.begin(reading=True) as connection:
        prompts = set(connection.scalars(sa.text("SELECT prompt FROM bench_run_results")))
    import polars as pl

    assert set(pl.read_parquet(home / "assets" / "sweep_scores.parquet")["prompt"]) == prompts


@on_postgres
def test_a_sweep_is_added_and_flexyfaces_pages_find_what_they_read(flexy: Flexy, adopted: Database) -> None:
    new = ("sweep", "new", "--engine", "mini_sdxl", "--images", "3", "--steps", "1:2")
    done = answer(flexy, "sweep", "run", answer(flexy, *new)["run"])
    assert (done["images_made"], done["scores_computed"]) == (3, 12)
    with adopted.begin(reading=True) as connection:
        run = connection.execute(sa.text("SELECT prompt, status FROM bench_runs WHERE plan IS NOT NULL")).one()
        rows = sa.text(
            "SELECT metrics_status, metrics_updated_at IS NOT NULL, tf32_enabled, width, height FROM bench_run_results"
            " WHERE batch LIKE :batch"
        )
        images = connection.execute(rows, {"batch": f"{done['run'][:8]}%"}).tuples().all()
    assert run == ("Parameter sweep: 3 images, steps (1, 2), guidance (0.5, 12.0)", "done")
    assert images == [("complete", True, False, 64, 64)] * 3


@on_postgres
def test_rescore_replaces_exactly_the_confirmed_number(flexy: Flexy, adopted: Database) -> None:
    answer(flexy, "backfill")
    with adopted.begin() as connection:
        theirs = "id NOT IN (SELECT image_id FROM image_scores WHERE metric = 'clip_score')"
        connection.exec_driver_sql(f"UPDATE bench_run_results SET clip_score = clip_score + 0.1 WHERE {theirs}")
    old = column(adopted, "hps_v2_score") | column(adopted, "clip_score")
    asked = answer(flexy, "rescore", "clip_score")
    assert f"use --replace {IMAGES}" in asked.pop("reason")
    assert asked == {"replaces": IMAGES, "retries": 0, "scores_computed": 0}
    assert f"would replace {IMAGES} scores of clip_score" in flexy("rescore", "clip_score").stdout
    wrong = flexy("rescore", "clip_score", "--replace", str(IMAGES - 1))
    assert wrong.exit_code == 2
    assert f"use --replace {IMAGES}" in wrong.stderr
    assert old == column(adopted, "hps_v2_score") | column(adopted, "clip_score")

    done = answer(flexy, "rescore", "clip_score", "--replace", str(IMAGES))
    assert (done["replaces"], done["filled"]) == (IMAGES, {"clip_score": IMAGES})
    new = column(adopted, "clip_score")
    # Those of ours come out the same again.
    changed = [path for path, value in new.items() if abs((value or 0) - (old[path] or 0)) > 1e-5]
    assert len(changed) == SCORED
    with adopted.begin(reading=True) as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM image_scores WHERE rescore IS NOT NULL")) == 0


@on_postgres
def test_rescore_of_a_named_sweep_leaves_the_others(flexy: Flexy, adopted: Database) -> None:
    answer(flexy, "backfill")
    runs = {entry["images"]: entry["run"] for entry in answer(flexy, "status")["runs"]}
    assert answer(flexy, "rescore", "hps_v2_score", runs[8][:8])["replaces"] == 8
    done = answer(flexy, "rescore", "hps_v2_score", runs[8][:8], "--replace", "8")
    assert done["filled"] == {"hps_v2_score": 8}


@on_postgres
def test_scores_with_exhausted_attempts_are_retried_on_request(flexy: Flexy, adopted: Database, home: Path) -> None:
    picture = home / "pictures" / "000003.png"
    content = picture.read_bytes()
    picture.unlink()
    for _ in range(3):
        answer(flexy, "backfill")
    assert answer(flexy, "backfill")["scores_computed"] == 0
    failed = answer(flexy, "status", "--failed")["failures"]
    assert {(row["metric"], row["given_up"]) for row in failed} == {
        ("clip_embedding", True),
        ("aes_v2_score", True),
        ("hps_v2_score", True),
    }
    assert "No such file" in flexy("status", "--failed").stdout
    picture.write_bytes(content)
    assert answer(flexy, "backfill")["scores_computed"] == 0, "nobody has asked yet"
    for metric in ("aes_v2_score", "hps_v2_score"):
        asked = answer(flexy, "rescore", metric, "--failed")
        assert (asked["replaces"], asked["retries"], asked["filled"]) == (0, 1, {metric: 1})
    assert answer(flexy, "status", "--failed")["failures"] == []
    assert ImageStore(str(home / "pictures")).read("000003.png")


@on_postgres
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rescore", "beauty"], "unknown metric 'beauty': choose from clip_score"),
        (["rescore", "clip_score", "ffffffff"], "unknown sweep 'ffffffff': does not exist"),
    ],
)
def test_an_invalid_rescore_is_refused(flexy: Flexy, adopted: Database, arguments: list[str], words: str) -> None:
    result = flexy(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@on_postgres
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FLEXY_IMAGES", "/nosuch/place", "the image root /nosuch/place does not exist: set FLEXY_IMAGES"),
        ("FLEXY_PROMPT_COLUMN", "caption", "the column bench_run_results.caption, which FLEXY_PROMPT_COLUMN names"),
    ],
)
def test_a_missing_image_root_or_column_is_named_and_nothing_is_written(
    flexy: Flexy, adopted: Database, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    result = flexy("backfill")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert words in line
    assert set(column(adopted, "clip_score").values()) & {None}
