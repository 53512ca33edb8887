"""What a person is shown of images: the same on both databases."""

from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from typing import Any
from uuid import UUID

from flexy_assets.storage import gallery
from flexy_assets.storage.quality import SAME_IMAGE_COLUMNS
from flexy_assets.storage.scores import EMBEDDING_METRIC, ScoredImage, record_outcomes
from flexy_assets.storage.sql import utc_now
from resources.database import Database
from resources.metrics.sweep import METRICS
from resources.settings import Settings
from tests.conftest import RUN, Adder

SETTINGS = Settings.read({"FLEXY_MODELS": "mini"})


def page(database: Database, **asked: Any) -> list[UUID]:
    with database.begin(reading=True) as connection:
        found, _ = gallery.card_page(connection, SETTINGS, **asked)
    return [UUID(card["id"]) for card in found]


def test_the_newest_come_first_or_the_highest_and_what_is_no_score_last(database: Database, add: Adder) -> None:
    old = utc_now() - timedelta(days=1)
    low, high = add(clip_score=0.1, created_at=old), add(clip_score=0.4, created_at=old - timedelta(days=1))
    missing, endless = (
        add(created_at=old + timedelta(hours=1)),
        add(clip_score=inf, created_at=old + timedelta(hours=2)),
    )
    no_number = add(clip_score=nan, created_at=old + timedelta(hours=3))
    assert page(database) == [*no_number, *endless, *missing, *low, *high]
    assert page(database, sort="clip_score") == [*high, *low, *no_number, *endless, *missing]


def test_a_page_is_of_an_engine_a_run_and_words_that_are_taken_as_they_are(database: Database, add: Adder) -> None:
    percent, plain = add(prompt="100% RED"), add(prompt="100 red", engine="other")
    assert page(database, prompt="% red") == percent
    assert page(database, prompt="Red", engine="other") == plain
    assert page(database, run_id=RUN, prompt="_") == []
    images = add(5, prompt="five")
    assert page(database, prompt="five", number=2, size=2) == [images[2], images[1]]


def test_a_missing_score_says_why(database: Database, add: Adder) -> None:
    (failed,), (strange,), (new,) = add(), add(engine="realvis_xl", clip_score=inf), add(clip_score=0.5)
    with database.begin() as connection:
        record_outcomes(connection, "hps_v2_score", "hps", [ScoredImage(failed, None, "it is no picture")])
        record_outcomes(connection, EMBEDDING_METRIC, "clip", [ScoredImage(failed, None, "it is gone")])
    with database.begin(reading=True) as connection:
        found = gallery.cards_of_images(connection, SETTINGS, [failed, strange, new])
    reasons = [{name: card["scores"][name]["reason"] for name in METRICS} for card in found]
    assert reasons[0]["hps_v2_score"] == "it is no picture"
    assert reasons[0]["clip_score"] == "no embedding: it is gone"
    assert reasons[1]["clip_score"] == "the table holds inf"
    assert reasons[1]["hps_v2_score"] == "FLEXY_MODELS=mini does not score images of realvis_xl"
    assert reasons[2] == {name: None if name == "clip_score" else "not scored yet" for name in METRICS}


def test_an_image_of_the_same_settings_is_found_whichever_run_made_it(database: Database, add: Adder) -> None:
    settings = {"engine": "mini_sdxl", "prompt": "a fox", "negative_prompt": None, "steps": 4, "guidance": 2.25}
    settings |= {"scheduler": None, "seed": 5, "width": 64, "height": 64}
    assert settings.keys() == set(SAME_IMAGE_COLUMNS)
    oldest, _ = add(2, **settings)
    with database.begin(reading=True) as connection:
        assert gallery.find_same_settings(connection, SETTINGS, settings) == oldest
        others = {"negative_prompt": "fog", "scheduler": "ddim", "guidance": None, "seed": 6, "prompt": "a Fox"}
        for name, other in others.items():
            assert gallery.find_same_settings(connection, SETTINGS, settings | {name: other}) is None
