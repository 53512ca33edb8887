"""Each form of table is adopted right, or refused in one line before it is touched: "nothing is missing" is proven."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import dagster as dg
import pytest
import sqlalchemy as sa

from flexy_assets.storage import status
from flexy_assets.storage.adoption import adopt_rows
from flexy_assets.storage.export import export_csv
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.scores import ScoredImage, read_scores, record_outcomes, record_scores
from flexy_assets.storage.tables import METRIC_COLUMNS
from flexy_assets.sweep import jobs
from resources.database import Database
from resources.errors import BadInputError
from resources.images import ImageStore
from resources.settings import Settings
from tests.conftest import Flexy, on_postgres, on_sqlite
from tests.support import flexyface

Adder = Callable[..., list[UUID]]


FLEXYFACE = """CREATE TABLE {} (
    id {} PRIMARY KEY, run_id {}, engine VARCHAR(50), steps INTEGER, guidance FLOAT, seed INTEGER,
    elapsed_ms INTEGER, image_path TEXT, clip_score FLOAT, aesthetic_score FLOAT, created_at TIMESTAMP)"""
RESULTS = FLEXYFACE.format("bench_run_results", "UUID", "UUID")


def execute(database: Database, *statements: str) -> None:
    with database.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def tables(database: Database) -> str:
    """The tables of every schema with their columns."""
    with database.begin(reading=True) as connection:
        inspector = sa.inspect(connection)
        schemas = [name for name in inspector.get_schema_names() if name != "information_schema"]
        return str([(name, inspector.get_multi_columns(schema=name)) for name in schemas])


def refusal(database: Database) -> str:
    """What is said of a database that is refused: one line; nothing in it is changed."""
    before = tables(database)
    with pytest.raises(BadInputError) as caught:
        adopt_rows(database, Settings.read({}))
    assert tables(database) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_options(database: Database, options: str) -> Database:
    return Database(database.url.update_query_dict({"options": options}).render_as_string(hide_password=False))


def add_image(database: Database, table: str = "bench_run_results", **values: Any) -> UUID:
    image = uuid4()
    row = {"id": str(image), "engine": "mini_sdxl", "image_path": "a.png"} | values
    columns, places = ", ".join(row), ", ".join(f":{name}" for name in row)
    with database.begin() as connection:
        connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), row)
    return image


# Another schema


@on_postgres
def test_a_table_in_another_schema_is_named_and_nothing_is_made_elsewhere(
    flexy: Flexy, empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(empty_database, "CREATE SCHEMA bench", RESULTS.replace("bench_run", "bench.bench_run", 1))
    add_image(empty_database, "bench.bench_run_results")
    message = refusal(empty_database)
    assert "bench_run_results is in the schema bench, where this user does not look" in message
    assert message.endswith("FLEXY_DATABASE_URL: …?options=-csearch_path%3Dbench")
    monkeypatch.setenv("FLEXY_DATABASE_URL", empty_database.url.render_as_string(hide_password=False))
    result = flexy("status", "--json")
    assert (result.exit_code, result.stderr) == (2, f"flexy: {message}\n")
    assert json.loads(result.stdout) == {"error": message}
    meant = with_options(empty_database, "-csearch_path=bench")
    assert adopt_rows(meant, Settings.read({})) == 1
    meant.engine.dispose()
    elsewhere = with_options(empty_database, "-csearch_path=public")
    assert adopt_rows(elsewhere, Settings.read({})) == 0, "chosen, and so it may be empty"
    elsewhere.engine.dispose()


@on_postgres
def test_a_start_in_the_wrong_schema_is_noticed_and_can_be_undone(empty_database: Database) -> None:
    migrate(empty_database)
    execute(empty_database, "CREATE SCHEMA bench", RESULTS.replace("bench_run", "bench.bench_run", 1))
    add_image(empty_database, "bench.bench_run_results")
    message = refusal(empty_database)
    assert "public.bench_run_results has no rows, and there is a table of that name in the schema bench, too" in message
    both = with_options(empty_database, "-csearch_path=bench,public")
    assert "Flexy's tables in the schema public were made for another table than bench.bench_run_results" in refusal(
        both
    )
    statement = message.partition("undone by ")[2]
    assert statement.startswith("DROP TABLE public.flexy_alembic_version, public.bench_runs, ")
    execute(empty_database, statement)
    with empty_database.begin(reading=True) as connection:
        assert sa.inspect(connection).get_table_names("public") == []
    assert adopt_rows(both, Settings.read({})) == 1
    both.engine.dispose()


@on_postgres
def test_what_has_rows_is_not_offered_for_dropping(empty_database: Database) -> None:
    migrate(empty_database)
    execute(empty_database, "CREATE SCHEMA bench", RESULTS.replace("bench_run", "bench.bench_run", 1))
    execute(empty_database, "INSERT INTO bench_runs (id) VALUES (gen_random_uuid())")
    assert "DROP" not in refusal(empty_database)
    add_image(empty_database)
    assert adopt_rows(empty_database, Settings.read({})) == 1, "the copy elsewhere is no matter"


# Row-level security


@pytest.fixture
def scorer(empty_database: Database) -> Iterator[Database]:
    """FlexyFace's table as a role sees it that has every right on it."""
    role = f"scorer_{uuid4().hex[:8]}"
    execute(empty_database, f"CREATE ROLE {role}", RESULTS, f"GRANT ALL ON SCHEMA public TO {role}")
    execute(empty_database, f"ALTER TABLE bench_run_results OWNER TO {role}")
    database = with_options(empty_database, f"-crole={role}")
    yield database
    database.engine.dispose()
    execute(empty_database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@on_postgres
def test_row_level_security_that_may_hide_rows_is_refused_and_one_that_cannot_is_not(
    empty_database: Database, scorer: Database
) -> None:
    add_image(empty_database)
    for switch in ("ENABLE", "FORCE"):
        execute(empty_database, f"ALTER TABLE bench_run_results {switch} ROW LEVEL SECURITY")
    execute(empty_database, "CREATE POLICY fast ON bench_run_results USING (steps < 20)")
    message = refusal(scorer)
    assert "row-level security of bench_run_results (policies: fast) may hide rows from scorer_" in message
    execute(empty_database, message.partition("the table's owner ")[2])
    assert adopt_rows(scorer, Settings.read({})) == 1
    execute(empty_database, "CREATE POLICY slow ON bench_run_results AS RESTRICTIVE USING (steps > 5)")
    assert "(policies: fast, flexy, slow)" in refusal(scorer)
    assert adopt_rows(empty_database, Settings.read({})) == 0, "a superuser is not bound by it"


# Writing


@on_postgres
def test_a_session_that_takes_no_writes_is_refused_and_shows_the_status(empty_database: Database) -> None:
    execute(empty_database, RESULTS)
    add_image(empty_database)
    reader = with_options(empty_database, "-cdefault_transaction_read_only=on")
    assert refusal(reader).startswith("the database takes no writes in this session: name the primary server")
    migrate(empty_database)
    assert refusal(reader).startswith("the database takes no writes in this session")
    migrate(reader)
    reader.engine.dispose()


@on_postgres
def test_rows_that_take_no_batch_are_named(empty_database: Database) -> None:
    execute(empty_database, RESULTS)
    migrate(empty_database)
    execute(
        empty_database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER refuse BEFORE UPDATE ON bench_run_results FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    add_image(empty_database)
    assert "bench_run_results takes no batch for its rows: a trigger or a rule refuses it" in refusal(empty_database)


# Ids


@on_sqlite
@pytest.mark.parametrize("form", [str, lambda i: i.hex.upper(), lambda i: i.int % 10**9, lambda i: i.bytes])
def test_ids_in_another_form_are_refused_and_those_of_hexadecimal_digits_rewritten(
    empty_database: Database, form: Callable[[UUID], Any]
) -> None:
    execute(empty_database, FLEXYFACE.format("bench_run_results", "BLOB", "BLOB"))
    image = UUID(int=2**127 + 0xABC)
    add_image(empty_database, id=form(image), run_id=form(uuid4()))
    message = refusal(empty_database)
    assert repr(form(image))[:20] in message or repr(str(form(image)))[:20] in message
    if not isinstance(form(image), str):
        assert message.endswith("copy the rows to tables whose ids are UUIDs")
        return
    execute(empty_database, *message.partition(": run ")[2].rstrip(";").split("; "))
    assert adopt_rows(empty_database, Settings.read({})) == 1
    with empty_database.begin() as connection:
        assert record_scores(connection, "clip_score", "test", [ScoredImage(image, 0.5)]) == 1


@on_sqlite
def test_a_row_that_comes_later_with_a_run_in_another_form_is_noticed(empty_database: Database) -> None:
    execute(empty_database, FLEXYFACE.format("bench_run_results", "CHAR(32)", "CHAR(32)"))
    add_image(empty_database, id=uuid4().hex, run_id=uuid4().hex)
    assert adopt_rows(empty_database, Settings.read({})) == 1
    add_image(empty_database, id=uuid4().hex, run_id=str(uuid4()))
    message = refusal(empty_database)
    assert message.endswith(": run UPDATE bench_run_results SET run_id = lower(replace(run_id, '-', ''));")


@on_sqlite
def test_an_integer_key_is_refused_though_it_is_empty(empty_database: Database) -> None:
    execute(empty_database, FLEXYFACE.format("bench_run_results", "INTEGER", "CHAR(32)"))
    assert "the column bench_run_results.id is INTEGER, where Flexy keeps CHAR(32)" in refusal(empty_database)


# Partitioned and foreign tables


@on_postgres
def test_a_table_partitioned_by_id_is_adopted_and_scored(empty_database: Database) -> None:
    parts = (f"PARTITION OF bench_run_results FOR VALUES WITH (MODULUS 2, REMAINDER {n})" for n in range(2))
    execute(
        empty_database, f"{RESULTS} PARTITION BY HASH (id)", *(f"CREATE TABLE p{n} {p}" for n, p in enumerate(parts))
    )
    images = [add_image(empty_database) for _ in range(8)]
    assert adopt_rows(empty_database, Settings.read({})) == 8
    with empty_database.begin() as connection:
        scores = [ScoredImage(image, 0.5) for image in images]
        assert record_scores(connection, "clip_score", "test", scores) == 8
        assert read_scores(connection, Settings.read({}))["clip_score"].to_list() == [0.5] * 8


@on_postgres
def test_a_table_partitioned_by_time_is_refused_because_its_ids_may_repeat(empty_database: Database) -> None:
    by_time = RESULTS.replace("UUID PRIMARY KEY", "UUID")[:-1] + ", PRIMARY KEY (id, created_at))"
    execute(empty_database, f"{by_time} PARTITION BY RANGE (created_at)")
    message = refusal(empty_database)
    assert message.endswith("it is partitioned by RANGE (created_at): partition it by HASH (id)")


@on_postgres
def test_a_foreign_table_is_refused(empty_database: Database) -> None:
    foreign = RESULTS.replace("CREATE TABLE", "CREATE FOREIGN TABLE").replace(" PRIMARY KEY", "")
    execute(empty_database, "CREATE FOREIGN DATA WRAPPER other", "CREATE SERVER other FOREIGN DATA WRAPPER other")
    execute(empty_database, f"{foreign} SERVER other")
    assert "bench_run_results is not a table but a view, or of another server" in refusal(empty_database)


# NaN


@on_postgres
def test_nan_is_counted_and_refused_with_the_statements_that_end_it(empty_database: Database) -> None:
    execute(empty_database, RESULTS)
    images = [add_image(empty_database, clip_score=score) for score in (math.nan, 0.5, math.nan, None)]
    execute(empty_database, f"UPDATE bench_run_results SET aesthetic_score = 'NaN' WHERE id = '{images[1]}'")
    message = refusal(empty_database)
    assert "holds NaN, which is neither a score nor missing (2 of clip_score, 1 of aesthetic_score)" in message
    execute(empty_database, message.partition(": run ")[2])
    assert adopt_rows(empty_database, Settings.read({})) == 4


@on_postgres
def test_nan_that_comes_later_is_missing_everywhere_and_stops_the_night(
    database: Database, add: Adder, tmp_path: Path
) -> None:
    add(1, **dict.fromkeys(METRIC_COLUMNS, 0.5))
    add(1, **dict.fromkeys(METRIC_COLUMNS, 0.5) | {"clip_score": math.nan})
    with database.begin(reading=True) as connection:
        (entry,) = status.status_by_sweep(connection)
        assert entry["clip_score"] == {"scored": 1, "missing": 1, "failed": 0}
        assert status.status_totals(connection)["complete"] == 1
        assert status.status_by_steps(connection)[0]["clip_score"] == 0.5
        assert sorted(read_scores(connection, Settings.read({}))["clip_score"].to_list(), key=str) == [0.5, None]
    assert export_csv(database, tmp_path / "a.csv") == 1
    with pytest.raises(BadInputError, match=r"\(1 of clip_score\): run UPDATE"):
        request(database, tmp_path)


# Nothing to do


def request(database: Database, folder: Path) -> str:
    """Why there is nothing to backfill."""
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        reason = jobs.request_backfill(instance, database, ImageStore(str(folder)), Settings.read({}))
    assert isinstance(reason, dg.SkipReason)
    return str(reason.skip_message)


def test_a_table_without_rows_is_said_to_be_empty_and_scores_that_failed_for_good_to_be_missing(
    database: Database, add: Adder, tmp_path: Path
) -> None:
    assert request(database, tmp_path).startswith("there are no images: bench_run_results has no rows: name the")
    (image,) = add(1, **dict.fromkeys(METRIC_COLUMNS, 0.5) | {"clip_score": None})
    with database.begin() as connection:
        for _ in range(3):
            record_outcomes(connection, "clip_score", "test", [ScoredImage(image, None, "no such file")])
    assert request(database, tmp_path) == (
        "no scores are missing but 1 that failed 3 times: flexy status --failed lists them"
    )
    with database.begin() as connection:
        record_scores(connection, "clip_score", "test", [ScoredImage(image, 0.5)])
    assert request(database, tmp_path) == "no scores are missing"


def test_the_true_tables_are_adopted(empty_database: Database, tmp_path: Path) -> None:
    flexyface.bring(empty_database, tmp_path / "pictures", (3,), 1)
    assert adopt_rows(empty_database, Settings.read({})) == 3
