"""No two workers score the same row: what one is at the others leave, until it is done or dead."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from flexy_assets.scoring import missing_scores
from flexy_assets.scoring.missing_scores import CHUNK_IMAGES
from flexy_assets.scoring.work import Work
from flexy_assets.storage import status
from flexy_assets.storage.locks import ImageClaims, exclusive_lock, open_claims
from flexy_assets.storage.scores import (
    EMBEDDING_METRIC,
    MAX_ATTEMPTS,
    RescoreRequest,
    count_missing_scores,
    request_rescore,
)
from flexy_assets.storage.tables import bench_run_results, image_embeddings, image_scores
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.models.entry import LocalModel
from resources.models.slot import ModelSlot
from resources.settings import Settings
from tests.conftest import on_postgres, on_sqlite
from tests.support import forked

Adder = Callable[..., list[UUID]]

IMAGES = [UUID(int=number) for number in range(1, 401)]


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


class Worker:
    """A process that does what it is told line by line, and answers in lines."""

    def __init__(self, program: str, *arguments: str) -> None:
        command = [sys.executable, "-c", program, *arguments]
        self.process = forked.Popen(command, stdin=forked.PIPE, stdout=forked.PIPE, text=True)

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the worker died"
        return line.rstrip("\n")

    def tell(self, what: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


Start = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(program, *arguments)` starts a worker, which ends with the test."""
    workers: list[Worker] = []

    def begin(*arguments: str) -> Worker:
        workers.append(Worker(*arguments))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()


# Claims themselves

TAKER = """
import sys
from uuid import UUID
from flexy_assets.storage.locks import open_claims
from resources.database import Database
print("ready", flush=True)
sys.stdin.readline()
with open_claims(Database(sys.argv[1])) as held:
    taken = set()
    for first in range(1, 401, 10):
        taken |= held.take("clip_score", [UUID(int=first + place) for place in range(10)])
    print(*(image.int for image in taken), flush=True)
    sys.stdin.readline()
print("let go", flush=True)
sys.stdin.readline()
"""


def taken(worker: Worker) -> set[UUID]:
    return {UUID(int=int(number)) for number in worker.answer().split()}


def free(database: Database, what: str = "clip_score", images: Sequence[UUID] = IMAGES) -> set[UUID]:
    """What a worker that comes now could have."""
    with open_claims(database) as held:
        return held.take(what, images)


def free_within_a_second(database: Database) -> bool:
    deadline = time.monotonic() + 1
    while free(database) != set(IMAGES):
        if time.monotonic() > deadline:
            return False
    return True


@on_postgres
def test_processes_that_take_the_same_images_at_once_have_each_image_once(database: Database, start: Start) -> None:
    workers = [start(TAKER, url_of(database)) for _ in range(2)]
    assert [worker.answer() for worker in workers] == ["ready", "ready"]
    for worker in workers:
        worker.tell()
    first, second = map(taken, workers)
    assert first | second == set(IMAGES)
    assert not first & second
    assert free(database) == set()
    workers[0].tell()
    assert workers[0].answer() == "let go"
    assert free(database) == first, "an end gives back what was taken, though the process lives"


@on_postgres
def test_claims_of_a_killed_worker_are_free_within_a_second(database: Database, start: Start) -> None:
    worker = start(TAKER, url_of(database))
    worker.tell()
    assert worker.answer() == "ready" and taken(worker) == set(IMAGES)
    assert free(database) == set()
    worker.kill()
    assert free_within_a_second(database)


@on_postgres
def test_what_is_let_go_is_free_and_the_rest_is_not(database: Database) -> None:
    with open_claims(database) as held:
        assert held.take("clip_score", IMAGES) == set(IMAGES)
        held.release("clip_score", IMAGES[:100])
        assert free(database) == set(IMAGES[:100])
        assert held.take("clip_score", IMAGES[:50]) == set(IMAGES[:50])
        assert free(database) == set(IMAGES[50:100])
    assert free(database) == set(IMAGES)


@on_postgres
def test_an_error_lets_go_of_everything(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), open_claims(database) as held:
        held.take("clip_score", IMAGES)
        raise ZeroDivisionError
    assert free_within_a_second(database)


@on_postgres
def test_one_metrics_claims_are_in_the_way_of_no_other(database: Database) -> None:
    names = (*METRICS, "clip@1/pixels1", "clip@2/pixels1")
    sessions = [open_claims(database) for _ in names]
    for name, session in zip(names, sessions, strict=True):
        assert session.__enter__().take(name, IMAGES) == set(IMAGES)
    assert all(free(database, name) == set() for name in names)
    for session in sessions:
        session.__exit__(None, None, None)


@on_postgres
def test_a_claim_keeps_nobody_from_the_row_itself(database: Database, add: Adder) -> None:
    image, other = add(2)
    with open_claims(database) as held:
        held.take("clip_score", [image, other])
        with database.begin() as owner:
            owner.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            assert owner.scalar(
                sa.select(bench_run_results.c.id).where(bench_run_results.c.id == image).with_for_update()
            )
            owner.execute(sa.update(bench_run_results).where(bench_run_results.c.id == image).values(steps=9))
            owner.execute(sa.delete(bench_run_results).where(bench_run_results.c.id == other))
            owner.exec_driver_sql("LOCK TABLE bench_run_results IN ACCESS EXCLUSIVE MODE")


@on_postgres
def test_a_claim_is_in_the_way_of_no_migration(empty_database: Database) -> None:
    from flexy_assets.storage.migrate import migrate

    with open_claims(empty_database) as held:
        held.take("clip_score", IMAGES)
        migrate(empty_database)


@on_postgres
def test_a_lost_connection_is_work_that_failed_in_one_line(database: Database) -> None:
    with pytest.raises(FlexyError) as caught, open_claims(database) as held:
        held.take("clip_score", IMAGES)
        with database.begin() as connection:
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            connection.exec_driver_sql(f"{ended} WHERE datname = current_database() AND pid <> pg_backend_pid()")
        assert free_within_a_second(database)
        held.take("clip_score", IMAGES[:1])
    message = str(caught.value)
    assert "\n" not in message and str(database.url.password) not in message
    assert message.startswith("cannot reach postgresql:")


@on_postgres
def test_the_server_is_to_notice_a_machine_that_has_gone_within_two_minutes(database: Database) -> None:
    def kept(held: ImageClaims, name: str) -> int:
        assert held._connection is not None
        return int(held._connection.exec_driver_sql(f"SHOW tcp_keepalives_{name}").scalar_one())

    with open_claims(database) as held:
        assert kept(held, "idle") + kept(held, "interval") * kept(held, "count") <= 120


@on_sqlite
def test_on_sqlite_every_claim_is_granted(database: Database) -> None:
    with open_claims(database) as one, open_claims(database) as two:
        assert one.take("clip_score", IMAGES) == two.take("clip_score", IMAGES) == set(IMAGES)
        one.release("clip_score", IMAGES)


def test_of_no_images_none_is_taken(database: Database) -> None:
    with open_claims(database) as held:
        assert held.take("clip_score", []) == set()
        held.release("clip_score", set())


# Workers that score


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two hundred tiny pictures."""
    drawn = np.random.default_rng(0).integers(0, 256, (200, 24, 24, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def rows(database: Database, add: Adder, pictures: Path) -> list[UUID]:
    """The pictures' rows, a hundred a batch."""
    ids = [image for batch in ("4b7193fd_0000", "4b7193fd_0001") for image in add(100, batch=batch)]
    with database.begin() as connection:
        for number, image in enumerate(ids):
            statement = sa.update(bench_run_results).where(bench_run_results.c.id == image)
            connection.execute(statement.values(image_path=f"{number}.png"))
    return ids


SCORER = """
import json, sys
from flexy_assets.storage import adoption
from flexy_assets.scoring import missing_scores
from flexy_assets.scoring.work import Work
from resources.database import Database
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.models.slot import ModelSlot
from resources.settings import Settings
slot = ModelSlot()
for line in sys.stdin:
    settings = Settings.read(json.loads(line))
    database = Database(settings.database_url)
    work = Work(database, ImageStore(settings.images), slot, settings)
    slot.get(work.model("clip"))
    with database.begin(reading=True) as connection:
        batches = adoption.batch_names(connection)
    print("ready", flush=True)
    sys.stdin.readline()
    passes = {"embedded": missing_scores.embed_images(work, batches, lambda count: None)}
    for name, metric in METRICS.items():
        passes[name] = missing_scores.score_images(work, metric, batches, lambda count: None)
    print(json.dumps({name: sum(o.done for _, o in outcomes) for name, outcomes in passes.items()}), flush=True)
    database.engine.dispose()
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[list[Worker]]:
    """Scorers that wait for work: their models' libraries take longer to load than a few pictures to score."""
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


@pytest.fixture
def scorers(database: Database, pictures: Path, rows: list[UUID], tmp_path: Path, warm: list[Worker]) -> list[Worker]:
    """Two processes that score everything once they are told to."""
    alive = [worker for worker in warm if worker.process.poll() is None]
    warm[:] = alive + [Worker(SCORER) for _ in range(2 - len(alive))]
    chosen = {"HOME": str(tmp_path), "IMAGES": str(pictures), "DATABASE_URL": url_of(database), "MODELS": "mini"}
    for worker in warm:
        worker.tell(json.dumps({f"FLEXY_{name}": value for name, value in chosen.items()}))
    assert [worker.answer() for worker in warm] == ["ready", "ready"]
    return warm


def count(database: Database, table: sa.Table) -> int:
    with database.begin(reading=True) as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def attempts(database: Database) -> dict[tuple[UUID, str], int]:
    with database.begin(reading=True) as connection:
        found = image_scores.c
        return {(row.image_id, row.metric): row.attempts for row in connection.execute(sa.select(*found))}


def lacking(database: Database) -> dict[str, dict[str, int]]:
    with database.begin(reading=True) as connection:
        return count_missing_scores(connection, Settings.read({}))


@on_postgres
def test_workers_that_score_at_once_score_every_row_once(
    database: Database, rows: list[UUID], scorers: list[Worker]
) -> None:
    for worker in scorers:
        worker.tell()
    shares = [json.loads(worker.answer()) for worker in scorers]
    assert {name: sum(share[name] for share in shares) for name in shares[0]} == dict.fromkeys(shares[0], len(rows))
    assert all(share["embedded"] for share in shares), "both were at work"
    assert attempts(database) == {(image, metric): 1 for image in rows for metric in METRICS}
    assert lacking(database) == {}


def work(database: Database, pictures: Path, slot: ModelSlot | None = None) -> Work:
    return Work(database, ImageStore(str(pictures)), slot or ModelSlot(), Settings.read({}))


def score(work: Work, batches: Sequence[str], *metrics: str) -> int:
    """How many scores a pass over these metrics adds."""
    passes = [missing_scores.score_images(work, METRICS[name], batches, lambda _: None) for name in metrics or METRICS]
    return sum(outcome.done for outcomes in passes for _, outcome in outcomes)


def embed(work: Work, batches: Sequence[str], on_progress: Callable[[int], Any] = lambda _: None) -> int:
    return sum(outcome.done for _, outcome in missing_scores.embed_images(work, batches, on_progress))


BATCHES = ("4b7193fd_0000", "4b7193fd_0001")


@on_postgres
def test_what_killed_workers_left_is_done_by_others_and_nothing_twice(
    database: Database, rows: list[UUID], pictures: Path, scorers: list[Worker]
) -> None:
    first, second = scorers
    for worker in scorers:
        worker.tell()
    while count(database, image_embeddings) < 2 * CHUNK_IMAGES:
        time.sleep(0.005)
    first.kill()
    # What the first was at, three chunks at most, is missing; of the rest some rows have their scores.
    while count(database, image_scores) < 3 * (len(rows) - 3 * CHUNK_IMAGES) + CHUNK_IMAGES:
        time.sleep(0.005)
    second.kill()
    before = attempts(database)

    missing = sum(sum(batches.values()) for batches in lacking(database).values())
    mine = work(database, pictures)
    embed(mine, BATCHES)
    assert score(mine, BATCHES) == missing == len(METRICS) * len(rows) - len(before)
    assert lacking(database) == {}
    assert attempts(database) == {(image, metric): 1 for image in rows for metric in METRICS}
    assert count(database, image_embeddings) == len(rows)


@on_postgres
def test_a_pass_that_loses_its_claims_fails_and_the_next_goes_on_from_there(
    database: Database, rows: list[UUID], pictures: Path
) -> None:
    mine = work(database, pictures)

    def lose(_: int) -> None:
        with database.begin() as connection:
            holders = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
            connection.exec_driver_sql(holders)

    with pytest.raises(FlexyError, match="cannot reach"):
        embed(mine, BATCHES, lose)
    kept = count(database, image_embeddings)
    assert CHUNK_IMAGES <= kept < len(rows)
    assert embed(mine, BATCHES) == len(rows) - kept
    assert score(mine, BATCHES) == len(METRICS) * len(rows)
    assert set(attempts(database).values()) == {1}


class SlowSlot(ModelSlot):
    """A slot in which something happens while a model is being loaded."""

    def __init__(self, meanwhile: Callable[[], Any]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def get(self, model: LocalModel) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return super().get(model)


@on_postgres
def test_rows_that_one_worker_embeds_while_another_scores_are_scored_by_one_of_them(
    database: Database, rows: list[UUID], pictures: Path
) -> None:
    half, go_on = threading.Event(), threading.Event()

    def embed_half_and_half() -> None:
        def on_progress(_: int) -> None:
            half.set()
            assert go_on.wait(60)

        mine = work(database, pictures)
        embed(mine, BATCHES[:1], on_progress)
        score(mine, BATCHES[:1], "aesthetic_score")

    embedder = threading.Thread(target=embed_half_and_half)
    embedder.start()
    assert half.wait(60)

    def let_the_other_finish() -> None:
        go_on.set()
        embedder.join(60)

    score(work(database, pictures, SlowSlot(let_the_other_finish)), BATCHES[:1], "aesthetic_score")
    assert not embedder.is_alive()
    assert BATCHES[0] not in lacking(database)["aesthetic_score"]


# Files that are not there


@pytest.fixture
def few(database: Database, add: Adder, pictures: Path) -> list[UUID]:
    """Four rows, of which the last two have no file."""
    return [image for name in ("0.png", "1.png", "gone/2.png", None) for image in add(1, image_path=name)]


def test_where_the_root_is_not_there_no_row_is_blamed(database: Database, few: list[UUID], tmp_path: Path) -> None:
    mine = work(database, tmp_path / "not mounted")
    with pytest.raises(BadInputError, match=r"the image root .*/not mounted does not exist: set FLEXY_IMAGES"):
        embed(mine, BATCHES)
    with pytest.raises(BadInputError, match=r"the image root .*/not mounted does not exist: set FLEXY_IMAGES"):
        score(mine, BATCHES, "hps_v2_score")
    assert attempts(database) == {}


@on_postgres
def test_a_row_whose_file_is_gone_is_named_and_tried_again_so_often_and_then_when_asked(
    database: Database, few: list[UUID], pictures: Path
) -> None:
    mine = work(database, pictures)
    *_, gone, nameless = few
    for times in range(1, MAX_ATTEMPTS + 2):
        embed(mine, BATCHES)
        score(mine, BATCHES)
        with database.begin(reading=True) as connection:
            failures = status.failed_scores(connection)
        assert {row["attempts"] for row in failures} == {min(times, MAX_ATTEMPTS)}
    assert lacking(database) == {}
    assert {(row["image"], row["metric"]) for row in failures} == {
        (str(image), metric) for image in (gone, nameless) for metric in (*METRICS, EMBEDDING_METRIC)
    }
    assert all("gone/2.png" in row["error"] for row in failures if row["image"] == str(gone))
    assert all("no image path is recorded" in row["error"] for row in failures if row["image"] == str(nameless))

    (pictures / "gone").mkdir()
    (pictures / "2.png").rename(pictures / "gone" / "2.png")
    assert embed(mine, BATCHES) == score(mine, BATCHES) == 0
    with database.begin() as connection:
        for metric in METRICS.values():
            assert request_rescore(connection, metric, [], True, mine.settings) == RescoreRequest(retried=2)
    assert embed(mine, BATCHES) == 1
    assert score(mine, BATCHES) == len(METRICS)
    with database.begin(reading=True) as connection:
        assert {row["image"] for row in status.failed_scores(connection)} == {str(nameless)}


# One at a time

HOLDING = """
import sys
from flexy_assets.storage.locks import exclusive_lock
from resources.database import Database

with exclusive_lock(Database(sys.argv[1]), "predictions"):
    print("in", flush=True)
    sys.stdin.readline()
"""


def test_one_is_alone_until_done_or_dead_and_the_next_waits(empty_database: Database, start: Start) -> None:
    with empty_database.begin(reading=True):
        pass
    holder = start(HOLDING, url_of(empty_database))
    assert holder.answer() == "in"
    entered = threading.Event()

    def enter() -> None:
        with exclusive_lock(empty_database, "predictions"):
            entered.set()

    waiting = threading.Thread(target=enter, daemon=True)
    waiting.start()
    with exclusive_lock(empty_database, "something else"):
        assert not entered.wait(0.5)
    holder.kill()
    assert entered.wait(20)
    waiting.join()
    with exclusive_lock(empty_database, "predictions"):
        pass
