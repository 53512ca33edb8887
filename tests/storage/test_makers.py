"""What computed a column is remembered with the sampled images, for as long as these are as they were."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from flexy_assets.storage.makers import (
    ExistingScore,
    ScoreMaker,
    list_makers,
    prompt_columns,
    read_maker,
    record_maker,
    sample_existing_scores,
    suspect_metrics,
)
from flexy_assets.storage.scores import ScoredImage, record_scores
from resources.database import Database
from resources.settings import Settings
from tests.conftest import Adder
from tests.support import flexyface

SETTINGS = Settings.read({"FLEXY_MODELS": "mini"})
MAKER = ScoreMaker("clip_score", "mini_clip@1", None, 8, 0, 0.5, 0.1, -0.25, ("clip: …",))


def sample(connection: Connection, size: int = 8) -> list[ExistingScore]:
    return sample_existing_scores(connection, "clip_score", "mini_clip@1", SETTINGS, size)


def test_the_sample_is_even_over_what_others_scored(database: Database, add: Adder) -> None:
    ids = add(100, clip_score=0.25, image_path="a.png")
    add(5, clip_score=0.25, engine="realvis_xl")
    with database.begin(reading=True) as connection:
        found = sample(connection)
    assert len(found) == 8 and {each.value for each in found} == {0.25}
    assert found[0].image_path == "a.png" and found[0].prompts[""] == "a red disc"
    places = [ids.index(each.image_id) for each in found]
    assert {after - before for before, after in pairwise(places)} <= {12, 13}
    # What an earlier version of the scorer made counts as another's.
    ours, older, _ = add(3)
    with database.begin() as connection:
        record_scores(connection, "clip_score", "mini_clip@1", [ScoredImage(ours, 0.5)])
        record_scores(connection, "clip_score", "mini_clip@0", [ScoredImage(older, 0.5)])
        assert {each.image_id for each in sample(connection, 1000)} == {*ids, older}


def remembered(database: Database, metric: str = "clip_score", scorer: str = "mini_clip@1") -> ScoreMaker | None:
    with database.begin(reading=True) as connection:
        return read_maker(connection, metric, scorer, SETTINGS)


@pytest.mark.parametrize("change", ["clip_score = 0.3", "prompt = 'a disc'"])
def test_a_maker_is_remembered_until_its_sample_changes(database: Database, add: Adder, change: str) -> None:
    add(8, clip_score=0.25)
    with database.begin() as connection:
        record_maker(connection, MAKER, sample(connection))
    assert remembered(database) == MAKER
    assert remembered(database, scorer="mini_clip@2") is None
    assert remembered(database, metric="hps_v2_score") is None
    add(4, clip_score=0.9)
    assert remembered(database) == MAKER, "the memory holds for new rows"
    with database.begin() as connection:
        connection.exec_driver_sql(f"UPDATE bench_run_results SET {change}")
    assert remembered(database) is None


def test_what_was_chosen_stays(database: Database, add: Adder) -> None:
    ours = replace(MAKER, variant={"reads": "clip", "scorer": "clip", "prompts": ""})
    with database.begin() as connection:
        record_maker(connection, MAKER, [])
        record_maker(connection, ours, [])
    add(4, clip_score=0.9)
    assert remembered(database) == ours
    with database.begin(reading=True) as connection:
        assert list_makers(connection, SETTINGS) == [ours]
        assert list_makers(connection, Settings.read({"FLEXY_MODELS": "full"})) == []


def test_a_metric_of_an_unknown_maker_or_of_other_prompts_is_suspect(database: Database) -> None:
    titles = {"reads": "clip", "scorer": "clip", "prompts": "bench_runs.prompt"}
    gives_titles = replace(MAKER, metric="hps_v2_score", variant=titles)
    ours = replace(MAKER, metric="aesthetic_score", variant=titles | {"prompts": ""})
    with database.begin() as connection:
        for maker in (MAKER, gives_titles, ours):
            record_maker(connection, maker, [])
        assert suspect_metrics(connection, SETTINGS) == {
            "clip_score": "no known scorer gives its scores (0 of 8 agree)",
            "hps_v2_score": "its scores are of the prompts in bench_runs.prompt, not the images' own",
        }


def test_every_column_that_may_hold_the_prompts_is_known(empty_database: Database, tmp_path: Path) -> None:
    from flexy_assets.storage.adoption import adopt_rows

    settings = Settings.read({"FLEXY_MODELS": "mini", "FLEXY_PROMPT_COLUMN": "image_path"})
    flexyface.bring(empty_database, tmp_path / "pictures", (2, 1), 3, made_by=None)
    adopt_rows(empty_database, settings)
    with empty_database.begin() as connection:
        connection.execute(sa.text("UPDATE bench_run_results SET prompt = NULL WHERE image_path LIKE '%000001.png'"))
        columns = ["", "bench_run_results.prompt", "bench_run_results.image_path", "bench_runs.prompt"]
        assert prompt_columns(connection, settings) == columns
        found = sample_existing_scores(connection, "clip_score", "mini_clip@1", settings, 64)
    assert len(found) == 3
    by_path = {(each.image_path or "")[-5]: each.prompts for each in found}
    own, without = by_path["0"], by_path["1"]
    assert own[""] == own["bench_run_results.prompt"] != own["bench_run_results.image_path"]
    assert without["bench_run_results.prompt"] is None and without[""] == without["bench_run_results.image_path"]
    assert by_path["2"]["bench_runs.prompt"] == "Parameter sweep: 1 images, steps (4, 60), guidance (0.5, 12.0)"
