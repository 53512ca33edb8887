"""What a tick asks for, and what the run it asks for does: every hole, once, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from flexy_assets.dead_runs import PROCESS_TAG, process_tag
from flexy_assets.execution import batches_in_progress, run_job, step_failures
from flexy_assets.scoring import makers
from flexy_assets.scoring.work import Work
from flexy_assets.storage.makers import record_maker
from flexy_assets.storage.tables import METRIC_COLUMNS
from flexy_assets.sweep import jobs
from resources.database import Database
from resources.errors import BadInputError
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.models.slot import ModelSlot
from resources.settings import Settings
from sensors.failed_runs import failed_runs, post_failure
from sensors.new_images import new_images
from tests.conftest import on_postgres
from tests.support import flexyface

pytestmark = pytest.mark.slow(seconds=60)

ALL = "UPDATE bench_run_results SET clip_score = 0.25, aesthetic_score = 5, aes_v2_score = 5, hps_v2_score = 0.25"


@dataclass
class Table:
    """An adopted FlexyFace table and a Dagster instance beside it."""

    settings: Settings
    database: Database
    instance: dg.DagsterInstance

    def request(self) -> dg.RunRequest | dg.SkipReason:
        return jobs.request_backfill(self.instance, self.database, ImageStore(self.settings.images), self.settings)

    def run(self, request: dg.RunRequest, job: str = "backfill_scores") -> dg.ExecuteInProcessResult:
        from flexy_assets.definitions import build_definitions

        return run_job(self.instance, build_definitions(Settings.read()), job, request.run_config)

    def execute(self, statement: str, **values: Any) -> None:
        with self.database.begin() as connection:
            connection.execute(sa.text(statement), values)

    def rows(self, columns: str = "*", order: str = "image_path") -> list[dict[str, Any]]:
        statement = sa.text(f"SELECT {columns} FROM bench_run_results ORDER BY {order}")
        with self.database.begin(reading=True) as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def trust(self) -> None:
        """Let the values that a test writes pass for Flexy's own."""
        work = Work(self.database, ImageStore(self.settings.images), ModelSlot(), self.settings)
        with self.database.begin() as connection:
            for metric in METRICS.values():
                record_maker(connection, makers.own_maker(work, metric), [])

    def missing(self) -> dict[str, int]:
        rows = self.rows(", ".join(METRIC_COLUMNS))
        return {name: sum(row[name] is None for row in rows) for name in METRIC_COLUMNS}


@pytest.fixture
def table(
    empty_database: Database, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Table]]:
    """`table(goes, scored)` brings a FlexyFace database, on SQLite and on Postgres."""
    with dg.DagsterInstance.local_temp(str(home)) as instance:

        def make(goes: tuple[int, ...], scored: int, **environment: str) -> Table:
            flexyface.bring(empty_database, home / "pictures", goes, scored)
            chosen = {
                "FLEXY_DATABASE_URL": empty_database.url.render_as_string(hide_password=False),
                "FLEXY_IMAGES": str(home / "pictures"),
                "FLEXY_PROMPT_COLUMN": flexyface.PROMPT_COLUMN,
            }
            for name, value in (chosen | environment).items():
                monkeypatch.setenv(name, value)
            return Table(Settings.read(), empty_database, instance)

        yield make


def asked(request: dg.RunRequest | dg.SkipReason) -> dict[str, list[str]]:
    """By step, the batches that a run is asked for."""
    assert isinstance(request, dg.RunRequest), request
    return {op: entry["config"]["batches"] for op, entry in request.run_config["ops"].items()}


@on_postgres
def test_missing_scores_in_twenty_scattered_partitions_are_one_run(table: Callable[..., Table]) -> None:
    at = table((100, 100), 0, FLEXY_BATCH_SIZE="5")
    assert set(asked(at.request())) == {"backfill_clip_embeddings", *(f"backfill_{name}" for name in METRIC_COLUMNS)}
    at.trust()
    at.execute(ALL)
    batches = sorted({row["batch"] for row in at.rows("batch")})
    assert len(batches) == 40
    # Of every second batch one image lacks everything.
    holes = batches[::2]
    ids = ", ".join(f"(SELECT min(image_path) FROM bench_run_results WHERE batch = '{batch}')" for batch in holes)
    nothing = ", ".join(f"{name} = NULL" for name in METRIC_COLUMNS)
    at.execute(f"UPDATE bench_run_results SET {nothing} WHERE image_path IN ({ids})")
    before = at.rows()

    request = at.request()
    assert {tuple(batches) for batches in asked(request).values()} == {tuple(holes)}
    assert isinstance(request, dg.RunRequest)
    assert at.run(request).success

    after = at.rows()
    assert at.missing() == dict.fromkeys(METRIC_COLUMNS, 0)
    for old, new in zip(before, after, strict=True):
        if old["clip_score"] is not None:
            assert new == old, "an image that lacked nothing was touched"
    assert isinstance(at.request(), dg.SkipReason)
    # Each batch shows in the UI under the asset it belongs to.
    for name in METRIC_COLUMNS:
        assert at.instance.get_materialized_partitions(dg.AssetKey(f"{name}s")) == set(holes)


def test_only_images_with_missing_scores_are_opened(table: Callable[..., Table]) -> None:
    at = table((40,), 0)
    at.request()
    at.trust()
    at.execute(ALL)
    at.execute(
        "UPDATE bench_run_results SET aes_v2_score = NULL WHERE image_path < :fifth",
        fifth=f"{at.settings.images}/000005.png",
    )
    for picture in sorted((Path(at.settings.images)).iterdir())[5:]:
        picture.unlink()
    request = at.request()
    assert isinstance(request, dg.RunRequest)
    assert request.tags["flexy/aes_v2_score"] == "5"
    assert asked(request)["backfill_hps_v2_score"] == []
    # By the job's deprecated name.
    result = at.run(request, "heal_scores")
    assert result.success
    log = [entry.user_message for entry in at.instance.all_logs(result.run_id)]
    assert "the job heal_scores is deprecated: use backfill_scores" in log
    assert at.missing() == dict.fromkeys(METRIC_COLUMNS, 0)


def test_scores_in_progress_are_not_requested_again(table: Callable[..., Table]) -> None:
    at = table((20, 20), 0, FLEXY_BATCH_SIZE="10")
    first = at.request()
    assert isinstance(first, dg.RunRequest)
    every = asked(first)["backfill_hps_v2_score"]

    def begin(status: dg.DagsterRunStatus, **more: Any) -> str:
        return at.instance.add_run(dg.DagsterRun(status=status, **more)).run_id

    config = jobs.backfill_config({"hps_v2_score": every[:1]})
    begin(dg.DagsterRunStatus.STARTED, job_name="backfill_scores", run_config=config)
    tags = {"dagster/asset_partition_range_start": every[2], "dagster/asset_partition_range_end": every[3]}
    selection = frozenset({dg.AssetKey("clip_scores")})
    backfill = begin(dg.DagsterRunStatus.STARTED, job_name="__ASSET_JOB", tags=tags, asset_selection=selection)
    at_it = batches_in_progress(at.instance)
    assert (at_it["hps_v2_score"], at_it["clip_score"]) == ({every[0]}, set(every[2:]))
    wanted = asked(at.request())
    assert wanted["backfill_hps_v2_score"] == every[1:]
    assert wanted["backfill_clip_score"] == every[:2]
    # Without a configuration backfill_scores is at everything.
    begin(dg.DagsterRunStatus.NOT_STARTED, job_name="backfill_scores")
    request = at.request()
    assert isinstance(request, dg.SkipReason)
    assert request.skip_message == "a backfill is already running for all missing scores"
    assert at.instance.get_run_by_id(backfill) is not None


def test_a_dead_run_has_nothing_in_progress(table: Callable[..., Table]) -> None:
    at = table((20,), 0)
    everything = at.request()
    host, _, _ = process_tag().split("/")
    dead = dg.DagsterRun(
        "backfill_scores", status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: f"{host}/1/0"}, run_config={}
    )
    at.instance.add_run(dead)
    assert asked(at.request()) == asked(everything)
    record = at.instance.get_run_by_id(dead.run_id)
    assert record is not None
    assert record.status == dg.DagsterRunStatus.FAILURE


def test_a_missing_image_root_starts_nothing_and_fails_nothing(table: Callable[..., Table], home: Path) -> None:
    at = table((20,), 0)
    shutil.move(home / "pictures", home / "elsewhere")
    with pytest.raises(BadInputError, match=r"the image root .*pictures does not exist: set FLEXY_IMAGES"):
        at.request()
    with at.database.begin(reading=True) as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM image_scores")) == 0


@on_postgres
def test_an_image_that_is_gone_is_named_and_the_others_are_scored(table: Callable[..., Table], home: Path) -> None:
    at = table((20,), 0)
    (home / "pictures" / "000007.png").unlink()
    at.execute("UPDATE bench_run_results SET image_path = '../flexy.sqlite' WHERE image_path LIKE '%000009.png'")
    for attempt in (1, 2, 3):
        request = at.request()
        assert isinstance(request, dg.RunRequest), attempt
        assert at.run(request).success
        assert at.missing() == dict.fromkeys(METRIC_COLUMNS, 2)
    assert isinstance(at.request(), dg.SkipReason), "after three attempts it is left to a person"
    with at.database.begin(reading=True) as connection:
        reasons = set(connection.scalars(sa.text("SELECT error FROM image_scores WHERE metric = 'hps_v2_score'")))
    assert {reason and reason.split(":")[0] for reason in reasons} == {
        None,
        f"cannot read image {home}/pictures/000007.png",
        f"image path '../flexy.sqlite' leads outside the image root {home}/pictures",
    }


def test_images_of_other_engines_are_left_out_and_counted(table: Callable[..., Table]) -> None:
    at = table((20,), 0)
    at.execute("UPDATE bench_run_results SET engine = 'realvis_xl'")
    request = at.request()
    assert isinstance(request, dg.SkipReason)
    assert request.skip_message == (
        "no scores are missing for FLEXY_MODELS=mini; left to the other model set: 20 images of realvis_xl"
    )


@on_postgres
def test_a_scorer_that_cannot_be_loaded_stops_no_other(
    table: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    from resources.models import registry

    at = table((20,), 0)
    real = registry.find_scorer

    def broken(name: str, settings: Settings) -> Any:
        if name == "aesthetic_v2":
            raise BadInputError("no weights for aesthetic_v2: fetch them")
        return real(name, settings)

    monkeypatch.setattr(registry, "find_scorer", broken)
    request = at.request()
    assert isinstance(request, dg.RunRequest)
    result = at.run(request)
    assert step_failures(result) == ["no weights for aesthetic_v2: fetch them"]
    assert at.missing() == dict.fromkeys(METRIC_COLUMNS, 0) | {"aes_v2_score": 20}


def test_new_rows_get_partitions_and_wait_for_the_nightly_backfill_by_default(table: Callable[..., Table]) -> None:
    at = table((30,), 30, FLEXY_BATCH_SIZE="20")

    def tick(settings: Settings) -> dg.RunRequest | dg.SkipReason:
        context = dg.build_sensor_context(
            at.instance,
            resources={"work": Work(at.database, ImageStore(settings.images), ModelSlot(), settings)},
        )
        answer = new_images(settings)(context)
        assert isinstance(answer, dg.RunRequest | dg.SkipReason)
        return answer

    first, second = tick(at.settings), tick(at.settings)
    assert isinstance(first, dg.SkipReason) and isinstance(second, dg.SkipReason)
    assert first.skip_message == "30 new rows, 2 new partitions: the nightly backfill scores them"
    assert second.skip_message == "no new rows"
    assert len(at.instance.get_dynamic_partitions("seed_batches")) == 2
    at_once = Settings.read({**os.environ, "FLEXY_SCORE_NEW": "1"})
    assert asked(tick(at_once))["backfill_aes_v2_score"] == at.instance.get_dynamic_partitions("seed_batches")


# Failed runs


class Webhook(BaseHTTPRequestHandler):
    heard: list[dict[str, str]] = []
    answer = 200

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.answer)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Webhook, "heard", [])
    server = HTTPServer(("127.0.0.1", 0), Webhook)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/services/T0/secret"
    server.shutdown()
    server.server_close()


def failed_run(instance: dg.DagsterInstance) -> Any:
    """The context in which the sensor hears of a run that failed."""

    @dg.op
    def fill() -> None:
        raise BadInputError("no weights for hps in /models:\nput them there")

    @dg.job
    def heal() -> None:
        fill()

    result = heal.execute_in_process(instance=instance, raise_on_error=False)
    (event,) = [e for e in result.all_events if e.event_type_value == "PIPELINE_FAILURE"]
    return dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_event=event,
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()


def test_a_failed_run_is_posted_to_the_webhook_in_one_line(home: Path, webhook: str) -> None:
    settings = Settings.read({"FLEXY_FAILURE_WEBHOOK": webhook})
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        context = failed_run(instance)
        failed_runs(context, work=Work.from_settings(settings))
        (message,) = Webhook.heard
        assert message["run"] == context.dagster_run.run_id
        assert message["error"] == "no weights for hps in /models: put them there"
        assert message["text"] == f"run {message['run'][:8]} of heal failed: {message['error']}"


def test_a_failing_webhook_fails_nothing_and_its_url_is_not_shown(
    webhook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert post_failure(webhook, {"text": "well"}) is None
    for answer in (302, 500):
        monkeypatch.setattr(Webhook, "answer", answer)
        assert post_failure(webhook, {}) == f"the webhook answered {answer}: check FLEXY_FAILURE_WEBHOOK"
    gone = post_failure("http://127.0.0.1:9/services/secret", {})
    assert gone is not None
    assert "cannot reach the webhook" in gone and "secret" not in gone
