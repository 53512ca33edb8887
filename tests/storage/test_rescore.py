"""Scores are computed again where somebody asks for it, failures are kept with their reason, and what is missing is
found by its rows."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from flexy_assets.storage import status
from flexy_assets.storage.embeddings import record_image_embeddings, select_pending_embeddings
from flexy_assets.storage.scores import (
    EMBEDDING_METRIC,
    MAX_ATTEMPTS,
    RescoreRequest,
    ScoredImage,
    count_missing_scores,
    metric_value,
    record_scores,
    request_rescore,
    select_pending_scores,
)
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results, bench_runs, image_scores
from resources.database import Database
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.settings import Settings

Adder = Callable[..., list[UUID]]

RUN = UUID("4b7193fd-0000-4000-8000-000000000000")
BATCH = "4b7193fd_0000"
CLIP = METRICS["clip_score"]
HPS = METRICS["hps_v2_score"]
SHARPNESS = Metric("sharpness", "Sharpness", "how sharp the picture is", 0, 255)
"""A metric that has no column of its own, and reads pictures."""

both_kinds = pytest.mark.parametrize("metric", [HPS, SHARPNESS], ids=["in a column", "without a column"])


@pytest.fixture(autouse=True)
def _sharpness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "sharpness", SHARPNESS)


def chosen(models: str = "mini") -> Settings:
    return Settings.read({"FLEXY_MODELS": models})


def record(database: Database, metric: Metric, *scores: ScoredImage, scorer: str = "old") -> int:
    with database.begin() as connection:
        return record_scores(connection, metric.name, scorer, scores)


def ask(
    database: Database, metric: Metric, *runs: UUID, failed: bool = False, only_count: bool = False
) -> RescoreRequest:
    with database.begin() as connection:
        return request_rescore(connection, metric, runs, failed, chosen(), only_count)


def offered(database: Database, metric: Metric, batch: str = BATCH) -> list[UUID]:
    with database.begin(reading=True) as connection:
        return [row.image_id for row in select_pending_scores(metric.name, chosen()).of(connection, batch)]


def to_embed(database: Database, *needed_for: str, encoder: str = "clip@1") -> list[UUID]:
    with database.begin(reading=True) as connection:
        lack = select_pending_embeddings(encoder, chosen(), needed_for)
        return [row.image_id for row in lack.of(connection, BATCH)]


def fail_to_embed(database: Database, *images: UUID, times: int = 1) -> None:
    for _ in range(times):
        with database.begin() as connection:
            failures = [ScoredImage(image, None, "no such file") for image in images]
            record_image_embeddings(connection, "clip@1", {}, failures)


def fail(database: Database, metric: Metric, *images: UUID, times: int = 1) -> None:
    for _ in range(times):
        record(database, metric, *(ScoredImage(image, None, "out of memory") for image in images), scorer="new")


def missing(database: Database, models: str = "mini") -> dict[str, dict[str, int]]:
    with database.begin(reading=True) as connection:
        return count_missing_scores(connection, chosen(models))


def values(database: Database, metric: Metric) -> dict[UUID, float | None]:
    with database.begin(reading=True) as connection:
        found = connection.execute(sa.select(bench_run_results.c.id, metric_value(metric.name)))
        return dict(found.tuples().all())


def outcome(database: Database, image: UUID, metric: Metric) -> Any:
    with database.begin(reading=True) as connection:
        mine = image_scores.c.image_id == image, image_scores.c.metric == metric.name
        return connection.execute(sa.select(image_scores).where(*mine)).one()


def failures(database: Database, limit: int | None = None) -> list[dict[str, Any]]:
    with database.begin(reading=True) as connection:
        return status.failed_scores(connection, limit)


def set_by_hand(database: Database, image: UUID, **columns: float | None) -> None:
    with database.begin() as connection:
        connection.execute(sa.update(bench_run_results).where(bench_run_results.c.id == image).values(columns))


# Asked for again


@both_kinds
def test_a_score_stays_until_its_new_one_is_measured_and_is_replaced_once(
    database: Database, add: Adder, metric: Metric
) -> None:
    images = add(3)
    record(database, metric, *(ScoredImage(image, 0.25) for image in images))
    assert offered(database, metric) == []

    assert ask(database, metric) == RescoreRequest(replaced=3)

    assert values(database, metric) == dict.fromkeys(images, 0.25)
    assert offered(database, metric) == images
    assert missing(database)[metric.name] == {BATCH: 3}
    assert record(database, metric, ScoredImage(images[0], 0.5), scorer="new") == 1
    assert values(database, metric) == dict.fromkeys(images, 0.25) | {images[0]: 0.5}
    assert offered(database, metric) == images[1:]
    assert record(database, metric, ScoredImage(images[0], 0.75), scorer="newer") == 0
    assert record(database, metric, *(ScoredImage(image, 0.5) for image in images[1:]), scorer="new") == 2
    assert values(database, metric) == dict.fromkeys(images, 0.5)
    assert metric.name not in missing(database)
    for image in images:
        found = outcome(database, image, metric)
        assert (found.value, found.scorer, found.error, found.rescore) == (0.5, "new", None, None)


def test_a_score_that_flexyface_wrote_is_replaced_as_any_other(database: Database, add: Adder) -> None:
    (image,) = add(1, clip_score=0.25)
    assert ask(database, CLIP) == RescoreRequest(replaced=1)
    assert (outcome(database, image, CLIP).value, outcome(database, image, CLIP).scorer) == (0.25, "not recorded")
    assert record(database, CLIP, ScoredImage(image, 0.5)) == 1
    assert values(database, CLIP) == {image: 0.5}


@both_kinds
def test_what_will_be_replaced_is_counted_before_and_nothing_asked_by_counting(
    database: Database, add: Adder, metric: Metric
) -> None:
    scored, failed, _ = add(4), add(2), add(1)
    record(database, metric, *(ScoredImage(image, 0.25) for image in scored))
    fail(database, metric, *failed, times=MAX_ATTEMPTS)
    before = missing(database)[metric.name]
    assert ask(database, metric, only_count=True) == RescoreRequest(replaced=4, retried=2)
    assert ask(database, metric, failed=True, only_count=True) == RescoreRequest(replaced=0, retried=2)
    assert missing(database)[metric.name] == before == {BATCH: 1}
    assert ask(database, metric) == RescoreRequest(replaced=4, retried=2)
    assert missing(database)[metric.name] == {BATCH: 7}


@both_kinds
def test_asking_twice_replaces_once(database: Database, add: Adder, metric: Metric) -> None:
    (image,) = add()
    record(database, metric, ScoredImage(image, 0.25))
    assert ask(database, metric) == ask(database, metric) == RescoreRequest(replaced=1)
    assert record(database, metric, ScoredImage(image, 0.5)) == 1
    assert offered(database, metric) == []


@both_kinds
def test_of_some_runs_only_theirs_are_asked_for(database: Database, add: Adder, metric: Metric) -> None:
    other = uuid4()
    with database.begin() as connection:
        connection.execute(sa.insert(bench_runs), {"id": other})
    of_run, of_other, of_none = add(2), add(3, run_id=other), add(1, run_id=None)
    record(database, metric, *(ScoredImage(image, 0.25) for image in of_run + of_other + of_none))
    assert ask(database, metric, other) == RescoreRequest(replaced=3)
    assert set(offered(database, metric)) == set(of_other)
    assert ask(database, metric, uuid4()) == RescoreRequest()
    assert ask(database, metric, other, RUN, only_count=True) == RescoreRequest(replaced=5)


def test_images_that_the_set_of_models_may_not_score_are_not_asked_for(database: Database, add: Adder) -> None:
    (ours,) = add(1, clip_score=0.25)
    add(1, clip_score=0.25, engine="realvis_xl")
    add(1, clip_score=0.25, engine=None)
    assert ask(database, CLIP) == RescoreRequest(replaced=1)
    assert (missing(database)["clip_score"], offered(database, CLIP)) == ({BATCH: 1}, [ours])
    with database.begin(reading=True) as connection:
        asked = sa.select(image_scores.c.image_id).where(image_scores.c.rescore.is_not(None))
        assert connection.scalars(asked).all() == [ours]


@both_kinds
def test_other_metrics_are_left_alone(database: Database, add: Adder, metric: Metric) -> None:
    (image,) = add(1, **dict.fromkeys(METRIC_COLUMNS, 0.25))
    record(database, SHARPNESS, ScoredImage(image, 0.25))
    ask(database, metric)
    assert missing(database) == {metric.name: {BATCH: 1}}


# What cannot be replaced


@both_kinds
def test_a_value_that_cannot_be_replaced_stays_with_what_made_it_and_is_told_of(
    database: Database, add: Adder, metric: Metric
) -> None:
    (image,) = add()
    record(database, metric, ScoredImage(image, 0.25))
    ask(database, metric)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert offered(database, metric) == [image]
        fail(database, metric, image)
        assert values(database, metric) == {image: 0.25}
        (told,) = failures(database)
        assert (told["metric"], told["error"]) == (metric.name, "out of memory")
        assert (told["attempts"], told["given_up"]) == (attempt, attempt == MAX_ATTEMPTS)
    assert offered(database, metric) == []
    assert metric.name not in missing(database)
    found = outcome(database, image, metric)
    assert (found.value, found.scorer) == (0.25, "old")

    assert ask(database, metric, failed=True) == RescoreRequest(retried=1)
    assert offered(database, metric) == [image]
    assert record(database, metric, ScoredImage(image, 0.5), scorer="new") == 1
    assert (values(database, metric), failures(database)) == ({image: 0.5}, [])


def test_a_value_set_back_by_hand_after_it_was_asked_for_is_given_up_like_any_other(
    database: Database, add: Adder
) -> None:
    (image,) = add(1, hps_v2_score=0.25)
    ask(database, HPS)
    set_by_hand(database, image, hps_v2_score=None)
    for _ in range(MAX_ATTEMPTS):
        assert offered(database, HPS) == [image]
        assert missing(database)["hps_v2_score"] == {BATCH: 1}
        fail(database, HPS, image)
    assert offered(database, HPS) == []
    assert "hps_v2_score" not in missing(database)
    assert [told["given_up"] for told in failures(database)] == [True]


def test_an_image_that_is_deleted_after_it_was_asked_for_is_forgotten(database: Database, add: Adder) -> None:
    (image,) = add(1, hps_v2_score=0.25)
    ask(database, HPS)
    with database.begin() as connection:
        connection.execute(sa.delete(bench_run_results))
    assert missing(database) == {}
    assert record(database, HPS, ScoredImage(image, 0.5)) == 0
    assert ask(database, HPS) == RescoreRequest()


# What failed


@both_kinds
def test_failures_are_tried_again_when_asked_and_nothing_is_replaced(
    database: Database, add: Adder, metric: Metric
) -> None:
    scored, given_up, failing, new = add(4)
    record(database, metric, ScoredImage(scored, 0.25))
    fail(database, metric, given_up, times=MAX_ATTEMPTS)
    fail(database, metric, failing)
    assert offered(database, metric) == [failing, new]
    assert ask(database, metric, failed=True) == RescoreRequest(retried=2)
    assert offered(database, metric) == [given_up, failing, new]
    for _ in range(MAX_ATTEMPTS):
        assert given_up in offered(database, metric)
        fail(database, metric, given_up)
    assert offered(database, metric) == [failing, new]
    assert values(database, metric)[scored] == 0.25


def test_a_score_that_rests_on_an_embedding_has_that_tried_again_too(database: Database, add: Adder) -> None:
    image, untouched = add(2)
    fail_to_embed(database, image, untouched, times=MAX_ATTEMPTS)
    fail(database, CLIP, image, times=MAX_ATTEMPTS)
    set_by_hand(database, untouched, clip_score=0.25)
    assert to_embed(database, "clip_score") == []
    ask(database, CLIP, failed=True)
    assert to_embed(database, "clip_score") == offered(database, CLIP) == [image]


def test_a_value_is_measured_anew_though_its_embedding_was_given_up(database: Database, add: Adder) -> None:
    """As of an image whose file was away for a while."""
    (image,) = add(1, clip_score=0.25)
    fail_to_embed(database, image, times=MAX_ATTEMPTS)
    ask(database, CLIP)
    assert to_embed(database, "clip_score") == [image]


def test_failures_are_listed_with_their_reasons_the_latest_first(database: Database, add: Adder) -> None:
    first, second, third = add(1, image_path="a.png") + add(1, run_id=None) + add(1)
    fail(database, HPS, first, times=MAX_ATTEMPTS)
    fail_to_embed(database, second)
    fail(database, SHARPNESS, third)
    record(database, SHARPNESS, ScoredImage(first, 0.5))
    told = failures(database)
    assert [(row["image"], row["metric"], row["attempts"], row["given_up"], row["error"]) for row in told] == [
        (str(third), "sharpness", 1, False, "out of memory"),
        (str(second), EMBEDDING_METRIC, 1, False, "no such file"),
        (str(first), "hps_v2_score", MAX_ATTEMPTS, True, "out of memory"),
    ]
    assert [row["run"] for row in told] == [str(RUN), None, str(RUN)]
    assert (told[2]["image_path"], told[2]["engine"]) == ("a.png", "mini_sdxl")
    assert failures(database, 2) == told[:2]


def test_what_was_mended_is_no_failure_any_more(database: Database, add: Adder) -> None:
    filled, embedded, deleted, asked, redone = add(5)
    fail(database, HPS, filled, deleted, asked, redone)
    fail_to_embed(database, embedded)
    assert len(failures(database)) == 5
    set_by_hand(database, filled, hps_v2_score=0.5)
    with database.begin() as connection:
        record_image_embeddings(connection, "clip@1", {embedded: np.ones(768, np.float32)}, [])
        connection.execute(sa.delete(bench_run_results).where(bench_run_results.c.id == deleted))
    record(database, HPS, ScoredImage(redone, 0.5))
    assert [row["image"] for row in failures(database)] == [str(asked)]
    ask(database, HPS, failed=True)
    assert failures(database) == []


# Killed in between

ASKER = """
import os, signal, sys
from flexy_assets.storage.scores import request_rescore
from resources.database import Database
from resources.metrics.sweep import METRICS
from resources.settings import Settings
metric = METRICS["hps_v2_score"]
database = Database(sys.argv[1])
with database.begin() as connection:
    request_rescore(connection, metric, [], False, Settings.read({}))
    if sys.argv[2] == "before it is committed":
        os.kill(os.getpid(), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before it is committed", "before it is scored"])
def test_a_kill_after_asking_loses_nothing(database: Database, add: Adder, moment: str) -> None:
    images = add(3, hps_v2_score=0.25)
    url = database.url.render_as_string(hide_password=False)
    killed = subprocess.run([sys.executable, "-c", ASKER, url, moment], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert values(database, HPS) == dict.fromkeys(images, 0.25)
    assert offered(database, HPS) == (images if moment == "before it is scored" else [])


# What is missing, counted by hand


def counted_by_hand(database: Database, models: str) -> dict[str, dict[str, int]]:
    """By metric and batch, how many images are to be offered: row by row, as a person would."""
    with database.begin(reading=True) as connection:
        rows = connection.execute(sa.select(bench_run_results)).mappings().all()
        outcomes = {(o.image_id, o.metric): o for o in connection.execute(sa.select(image_scores))}
    found: dict[str, Counter[str]] = {}
    for row in rows:
        mini = (row["engine"] or "").startswith("mini_")
        if row["batch"] is None or mini != (models == "mini"):
            continue
        for metric in METRICS:
            last = outcomes.get((row["id"], metric))
            value = row[metric] if metric in METRIC_COLUMNS else last and last.value
            tries_left = not last or last.attempts < MAX_ATTEMPTS
            # Measured, and since then set back by hand: its tries are counted anew.
            settled = last and last.value is not None and not last.rescore
            if (value is None and (tries_left or settled)) or (last and last.rescore and tries_left):
                found.setdefault(metric, Counter())[row["batch"]] += 1
    return {metric: dict(sorted(batches.items())) for metric, batches in found.items()}


@pytest.mark.parametrize("seed", range(3))
def test_what_is_missing_is_what_a_count_by_hand_finds(database: Database, add: Adder, seed: int) -> None:
    draw = random.Random(seed)
    batches = [BATCH, "4b7193fd_0001", "norun_0000"]
    images: list[UUID] = []
    for _ in range(40):
        scores = {metric: draw.choice([None, 0.25]) for metric in METRIC_COLUMNS}
        engine = draw.choice(["mini_sdxl", "minimax", "realvis_xl", None])
        images += add(1, batch=draw.choice([*batches, None]), engine=engine, run_id=draw.choice([RUN, None]), **scores)

    def some() -> Collection[UUID]:
        return draw.sample(images, draw.randrange(1, 12))

    for _ in range(30):
        metric = draw.choice(list(METRICS.values()))
        match draw.randrange(6):
            case 0:
                record(database, metric, *(ScoredImage(image, 0.5) for image in some()))
            case 1 | 2:
                fail(database, metric, *some(), times=draw.randrange(1, MAX_ATTEMPTS + 1))
            case 3:
                if metric.column:
                    for image in some():
                        set_by_hand(database, image, **{metric.name: draw.choice([None, 0.75])})
            case 4:
                ask(database, metric, *draw.choice([[], [RUN]]), failed=draw.random() < 0.5)
            case 5:
                with database.begin() as connection:
                    request_rescore(connection, metric, [], draw.random() < 0.3, chosen("full"))
        for models in ("mini", "full"):
            assert missing(database, models) == counted_by_hand(database, models)

    # And so many are offered, batch by batch.
    for name, counts in missing(database).items():
        assert {batch: len(offered(database, METRICS[name], batch)) for batch in counts} == counts
        with database.begin(reading=True) as connection:
            assert select_pending_scores(name, chosen()).count(connection, list(counts)) == sum(counts.values())
    # Whatever happened before: what keeps failing is left alone, and what succeeds is there.
    for _ in range(MAX_ATTEMPTS):
        for name, counts in missing(database).items():
            for batch in counts:
                fail(database, METRICS[name], *offered(database, METRICS[name], batch))
    assert missing(database) == {}
    for metric in METRICS.values():
        ask(database, metric)
        for batch in batches:
            record(database, metric, *(ScoredImage(image, 0.5) for image in offered(database, metric, batch)))
    assert missing(database) == {}
