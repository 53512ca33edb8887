"""The rows are the truth: what is written once stays, what failed is remembered, what is missing is found."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from flexy_assets.storage import status
from flexy_assets.storage.embeddings import (
    read_embedding_errors,
    read_image_vectors,
    read_text_vectors,
    record_image_embeddings,
    record_text_embeddings,
    select_pending_embeddings,
)
from flexy_assets.storage.runs import (
    SweepRow,
    add_images,
    find_existing_images,
    list_sweeps,
    record_weights,
    save_sweep,
)
from flexy_assets.storage.scores import MAX_ATTEMPTS, ScoredImage, read_scores, record_scores, select_pending_scores
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results, image_scores
from flexy_assets.sweep.status_tables import status_summary
from resources.database import Database
from resources.settings import Settings

Adder = Callable[..., list[UUID]]
BATCH = "4b7193fd_0000"
PLAN = {"engine": "mini_sdxl", "prompts": ["a fox"], "steps": {"low": 4, "high": 60}, "seed": 7}
ALL_SCORED = dict.fromkeys(METRIC_COLUMNS, 0.5)


def chosen(models: str) -> Settings:
    return Settings.read({"FLEXY_MODELS": models})


def record(database: Database, *scores: ScoredImage, metric: str = "clip_score") -> int:
    with database.begin() as connection:
        return record_scores(connection, metric, "test", scores)


def offered(database: Database, models: str = "mini", metric: str = "clip_score") -> list[UUID]:
    with database.begin(reading=True) as connection:
        return [row.image_id for row in select_pending_scores(metric, chosen(models)).of(connection, BATCH)]


def value(database: Database, image_id: UUID, column: str = "clip_score") -> Any:
    with database.begin(reading=True) as connection:
        images = bench_run_results.c
        return connection.scalar(sa.select(images[column]).where(images.id == image_id))


def outcomes(database: Database) -> dict[UUID, tuple[float | None, str | None, int]]:
    with database.begin(reading=True) as connection:
        return {r.image_id: (r.value, r.error, r.attempts) for r in connection.execute(sa.select(image_scores))}


def counts(database: Database, metric: str = "clip_score") -> dict[str, int]:
    with database.begin(reading=True) as connection:
        (entry,) = status.status_by_sweep(connection)
    return entry[metric]


# Scores


def test_a_score_that_is_there_is_never_overwritten(database: Database, add: Adder) -> None:
    old, new = add(1, clip_score=0.25) + add(1)
    assert record(database, ScoredImage(old, 0.75), ScoredImage(new, 0.5)) == 1
    assert (value(database, old), value(database, new)) == (0.25, 0.5)
    assert record(database, ScoredImage(new, 0.9)) == 0
    assert value(database, new) == 0.5


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_a_failure(database: Database, add: Adder, number: float) -> None:
    (image,) = add()
    assert record(database, ScoredImage.of(image, number)) == 0
    assert value(database, image) is None
    assert outcomes(database) == {image: (None, f"the scorer returned {number}", 1)}


def test_an_image_that_keeps_failing_is_left_for_a_person(database: Database, add: Adder) -> None:
    broken, sound = add(2)
    for _ in range(MAX_ATTEMPTS):
        assert offered(database) == [broken, sound]
        record(database, ScoredImage(broken, None, "cannot decode"))
    assert offered(database) == [sound]
    assert counts(database) == {"scored": 0, "missing": 1, "failed": 1}
    assert outcomes(database)[broken] == (None, "cannot decode", MAX_ATTEMPTS)


def test_a_failure_of_one_metric_does_not_hide_the_image_from_another(database: Database, add: Adder) -> None:
    (image,) = add()
    for _ in range(MAX_ATTEMPTS):
        record(database, ScoredImage(image, None, "cannot decode"))
    assert offered(database, metric="hps_v2_score") == [image]


def test_a_later_success_clears_the_failure(database: Database, add: Adder) -> None:
    (image,) = add()
    record(database, ScoredImage(image, None, "out of memory"))
    assert counts(database)["failed"] == 1
    record(database, ScoredImage(image, 0.5))
    assert outcomes(database) == {image: (0.5, None, 2)}
    assert counts(database) == {"scored": 1, "missing": 0, "failed": 0}


def test_a_score_filled_in_by_somebody_else_is_no_failure(database: Database, add: Adder) -> None:
    (image,) = add()
    record(database, ScoredImage(image, None, "out of memory"))
    with database.begin() as connection:
        connection.execute(sa.update(bench_run_results).values(clip_score=0.5))
    assert counts(database) == {"scored": 1, "missing": 0, "failed": 0}


def test_a_score_set_back_to_null_is_offered_again(database: Database, add: Adder) -> None:
    (image,) = add()
    for _ in range(MAX_ATTEMPTS - 1):
        record(database, ScoredImage(image, None, "out of memory"))
    record(database, ScoredImage(image, 0.5))
    with database.begin() as connection:
        connection.execute(sa.update(bench_run_results).values(clip_score=None))
    assert offered(database) == [image]


def test_a_score_and_its_record_are_written_together_or_not_at_all(database: Database, add: Adder) -> None:
    (image,) = add()
    with pytest.raises(KeyboardInterrupt), database.begin() as connection:
        record_scores(connection, "clip_score", "test", [ScoredImage(image, 0.5)])
        raise KeyboardInterrupt
    assert (value(database, image), outcomes(database)) == (None, {})


def test_an_image_that_its_owner_deleted_meanwhile_leaves_no_record(database: Database, add: Adder) -> None:
    image, gone = add(2)
    with database.begin() as connection:
        connection.execute(sa.delete(bench_run_results).where(bench_run_results.c.id == gone))
    assert record(database, ScoredImage(image, 0.5), ScoredImage(gone, 0.5)) == 1
    assert set(outcomes(database)) == {image}


def test_each_model_set_is_offered_its_own_engines_images_only(database: Database, add: Adder) -> None:
    mini = add(2, engine="mini_sdxl")
    # The underscore is no wildcard, and an adopted row may lack its engine.
    full = add(1, engine="realvis_xl") + add(1, engine="minimax") + add(1, engine=None)
    assert set(offered(database, "mini")) == set(mini)
    assert set(offered(database, "full")) == set(full)
    with database.begin(reading=True) as connection:
        ids = {
            m: {r.image_id for r in select_pending_embeddings("e", chosen(m)).of(connection, BATCH)}
            for m in ("mini", "full")
        }
    assert ids == {"mini": set(mini), "full": set(full)}


def test_only_the_batch_asked_for_is_offered_and_oldest_first(database: Database, add: Adder) -> None:
    add(2, batch="4b7193fd_0001")
    ids = add(20)
    assert offered(database) == ids


# Embeddings


def vectors(count: int) -> np.ndarray:
    drawn = np.random.default_rng(3).standard_normal((count, 768)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_image_vectors_come_back_bit_for_bit(database: Database, add: Adder) -> None:
    ids = add(3)
    kept = dict(zip(ids[:2], vectors(2), strict=True))
    with database.begin() as connection:
        record_image_embeddings(connection, "clip@1", kept, [ScoredImage(ids[2], None, "no such file")])
    with database.begin(reading=True) as connection:
        found = read_image_vectors(connection, "clip@1", ids)
        assert read_image_vectors(connection, "clip@2", ids) == {}
        assert read_embedding_errors(connection, ids) == {ids[2]: "no such file"}
        assert [row.image_id for row in select_pending_embeddings("clip@1", chosen("mini")).of(connection, BATCH)] == [
            ids[2]
        ]
        assert len(select_pending_embeddings("clip@2", chosen("mini")).of(connection, BATCH)) == 3
    assert found.keys() == kept.keys()
    for image_id, vector in found.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, kept[image_id])


def test_an_image_that_cannot_be_embedded_is_given_up_too(database: Database, add: Adder) -> None:
    (image,) = add()
    for _ in range(MAX_ATTEMPTS):
        with database.begin() as connection:
            assert [row.image_id for row in select_pending_embeddings("e", chosen("mini")).of(connection, BATCH)] == [
                image
            ]
            record_image_embeddings(connection, "e", {}, [ScoredImage(image, None, "no such file")])
    with database.begin(reading=True) as connection:
        assert select_pending_embeddings("e", chosen("mini")).of(connection, BATCH) == []


def test_text_vectors_are_found_by_their_prompt(database: Database) -> None:
    prompts = ["a red disc", "a red disc ", "赤い円　🔴"]
    kept = dict(zip(prompts, vectors(3), strict=True))
    with database.begin() as connection:
        record_text_embeddings(connection, "clip@1", kept)
        record_text_embeddings(connection, "clip@1", {prompts[0]: vectors(4)[3]})  # the first one stays
    with database.begin(reading=True) as connection:
        found = read_text_vectors(connection, "clip@1", [*prompts, "a blue disc"])
        assert read_text_vectors(connection, "clip@2", prompts) == {}
    assert found.keys() == kept.keys()
    for prompt, vector in found.items():
        np.testing.assert_array_equal(vector, kept[prompt])


# Runs, images and tables for people


def test_an_image_added_twice_is_there_once_and_keeps_its_scores(database: Database, add: Adder) -> None:
    (image,) = add(1, seed=7)
    record(database, ScoredImage(image, 0.5))
    with database.begin() as connection:
        add_images(connection, [{"id": image, "batch": BATCH, "seed": 8}])
        assert find_existing_images(connection, [image, uuid4()]) == {image}
        assert read_scores(connection, chosen("mini")).height == 1
    assert (value(database, image, "seed"), value(database, image)) == (7, 0.5)


def test_more_images_than_a_statement_takes_ids_are_found(database: Database, add: Adder) -> None:
    ids = add(1201)
    with database.begin(reading=True) as connection:
        assert find_existing_images(connection, [*ids, uuid4()]) == set(ids)


def test_status_counts_scored_missing_and_failed_of_each_run_and_engine(database: Database, add: Adder) -> None:
    ids = add(5)
    add(2, engine="realvis_xl", run_id=None)
    record(database, ScoredImage(ids[0], 0.5), ScoredImage(ids[1], None, "broken"))
    unbegun = uuid4()
    with database.begin() as connection:
        save_sweep(connection, unbegun, "mini_sdxl", 10, {})
    with database.begin(reading=True) as connection:
        table = status.status_by_sweep(connection)
    found = {(e["engine"], e["images"], e["target"], *e["clip_score"].values()) for e in table}
    assert found == {("mini_sdxl", 5, 100, 1, 3, 1), ("realvis_xl", 2, None, 0, 2, 0), ("mini_sdxl", 0, 10, 0, 0, 0)}
    assert {tuple(e["hps_v2_score"]) for e in table} == {("scored", "missing", "failed")}


def test_a_run_is_saved_once_and_its_target_grows(database: Database) -> None:
    run = uuid4()
    for target in (600, 1000):
        with database.begin() as connection:
            save_sweep(connection, run, "mini_sdxl", target, PLAN)
    with database.begin(reading=True) as connection:
        assert list_sweeps(connection) == [SweepRow(run, "mini_sdxl", 1000, PLAN)]


# More than one at work

WRITER = """
import sys
from uuid import UUID
from flexy_assets.storage.runs import add_images, find_existing_images
from flexy_assets.storage.scores import ScoredImage, record_scores
from resources.database import Database
database, number = Database(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(40):
    image = UUID(int=1000 * number + turn)
    with database.begin() as connection:
        assert not find_existing_images(connection, [image])  # a reader that becomes a writer: where locks are lost
        add_images(connection, [{"id": image, "batch": "b", "engine": "mini_sdxl"}])
    with database.begin() as connection:
        record_scores(connection, "clip_score", "test", [ScoredImage(image, 0.5)])
"""


def test_two_processes_write_while_a_third_reads(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        with database.begin(reading=True) as connection:
            status.status_by_sweep(connection)
    for writer in writers:
        assert writer.returncode == 0, writer.communicate()[1]
    with database.begin(reading=True) as connection:
        assert read_scores(connection, chosen("mini"))["clip_score"].to_list() == [0.5] * 80


def test_adopted_rows_keep_flexyfaces_name_of_their_engine(database: Database, add: Adder) -> None:
    add(1, engine="flux_dev", weights="black-forest-labs/FLUX.1-schnell")
    add(1, engine="flux_schnell", weights="flux_schnell@741f7c3ce8b3/bf16")
    with database.begin(reading=True) as connection:
        assert set(read_scores(connection, chosen("full"))["engine"]) == {"flux_dev", "flux_schnell"}


def test_two_sets_of_weights_of_one_engine_are_never_pooled(database: Database, add: Adder) -> None:
    made_by = {"a": "realvis_xl@ac93e0dda1f6/fp16", "b": "realvis_xl@ac93e0dda1f6", "c": None, "d": None}
    for name, weights in made_by.items():
        add(1, engine="sd3" if name == "d" else "realvis_xl", image_path=name, weights=weights)

    def engines() -> dict[str, str]:
        with database.begin(reading=True) as connection:
            return dict(read_scores(connection, chosen("full")).select("image_path", "engine").iter_rows())

    def question() -> str:
        with database.begin(reading=True) as connection:
            counts = status.read_status(connection, chosen("full"))
        return "".join(line for line in status_summary(counts).splitlines() if "realvis" in line)

    asked = "images of realvis_xl (1) were made by unknown weights: name them with flexy sweep weights realvis_xl NAME"
    assert question() == asked
    ours = "realvis_xl [ac93e0dd]"
    assert engines() == {"a": ours, "b": ours, "c": "realvis_xl [weights unknown]", "d": "sd3"}
    with database.begin() as connection:
        assert record_weights(connection, "realvis_xl", "SG161222/RealVisXL_V4.0") == 1
    assert question() == ""
    assert engines()["c"] == "realvis_xl [SG161222/RealVisXL_V4.0]"
    assert engines()["a"] == ours
