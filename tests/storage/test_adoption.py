"""A FlexyFace database is adopted: missing columns are added, the rest stays, and what cannot be adopted is named."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import alembic.command
import numpy as np
import pytest
import sqlalchemy as sa

from flexy_assets.storage import adoption, status
from flexy_assets.storage import migrate as migrate_module
from flexy_assets.storage.embeddings import record_image_embeddings, record_text_embeddings, select_pending_embeddings
from flexy_assets.storage.export import export_csv
from flexy_assets.storage.locks import open_claims
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import list_sweeps
from flexy_assets.storage.scores import (
    ScoredImage,
    count_missing_scores,
    read_scores,
    record_scores,
    request_rescore,
    select_pending_scores,
)
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.metrics.sweep import METRICS
from resources.settings import Settings
from tests.conftest import on_postgres
from tests.support import flexyface as flexyface_tables
from tests.support import forked

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

Adder = Callable[..., list[UUID]]
Roles = Callable[..., Database]

FLEXYFACE = flexyface_tables.table_statements("postgresql")
REFERENCE = " REFERENCES bench_runs ON DELETE CASCADE"
RESULTS = FLEXYFACE[1].replace(REFERENCE, "")
"""The table of images alone."""

RUN = UUID("4b7193fd-0000-4000-8000-000000000000")
IMAGE = UUID("0a4ce1e1-0000-4000-8000-000000000000")
BEGAN = datetime(2025, 3, 1, 12)


def settings(**variables: object) -> Settings:
    return Settings.read({"FLEXY_MODELS": "full"} | {f"FLEXY_{name}": str(value) for name, value in variables.items()})


def execute(database: Database, *statements: str) -> None:
    with database.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def read(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.begin(reading=True) as connection:
        return [tuple(row) for row in connection.execute(sa.text(statement))]


CATALOGUE = """
WITH mine AS (
    SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'p', 'f'))
SELECT 'relation', relname, '', concat_ws(' ', relkind, relowner::regrole, relacl, obj_description(oid, 'pg_class'))
FROM mine
UNION ALL SELECT 'column', relname, attname, concat_ws(' ', format_type(atttypid, atttypmod), attnotnull,
    attgenerated, attacl, col_description(oid, attnum),
    (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum))
FROM mine JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT 'constraint', relname, conname, pg_get_constraintdef(pg_constraint.oid)
FROM mine JOIN pg_constraint ON conrelid = mine.oid
UNION ALL SELECT 'index', relname, indexrelid::regclass::text, pg_get_indexdef(indexrelid)
FROM mine JOIN pg_index ON indrelid = oid
UNION ALL SELECT 'trigger', relname, tgname, pg_get_triggerdef(pg_trigger.oid)
FROM mine JOIN pg_trigger ON tgrelid = mine.oid
UNION ALL SELECT 'view', relname, '', pg_get_viewdef(oid) FROM mine WHERE relkind IN ('v', 'm')
"""


def catalogue(database: Database) -> set[tuple[Any, ...]]:
    """What the server knows of every relation: columns, constraints, indexes, triggers, views, owners, rights."""
    return set(read(database, CATALOGUE))


def columns_of(database: Database, table: str) -> list[str]:
    with database.begin(reading=True) as connection:
        return [column["name"] for column in sa.inspect(connection).get_columns(table)]


def refusal(database: Database, chosen: Settings | None = None) -> str:
    """What adoption says of a database that it refuses: one line, without the password."""
    with pytest.raises(BadInputError) as caught:
        adoption.adopt_rows(database, chosen or settings())
    message = str(caught.value)
    assert "\n" not in message
    assert not database.url.password or str(database.url.password) not in message
    return message


# What is there stays

OTHERS_WORK_IN_IT = (
    *FLEXYFACE,
    """ALTER TABLE bench_run_results ALTER id SET DEFAULT gen_random_uuid(), ADD UNIQUE (image_path),
        ADD CHECK (steps BETWEEN 1 AND 200), ADD CHECK (clip_score BETWEEN 0 AND 1),
        ADD reviewer VARCHAR(20) NOT NULL, ADD tags TEXT[] NOT NULL DEFAULT '{}',
        ADD extra JSONB NOT NULL DEFAULT '{}', ADD "Mixed Case" INTEGER,
        ADD cost NUMERIC(8, 4) GENERATED ALWAYS AS (steps * 0.01) STORED""",
    "CREATE TABLE remarks (id SERIAL PRIMARY KEY, image UUID NOT NULL REFERENCES bench_run_results (id), remark TEXT)",
    "CREATE INDEX by_steps ON bench_run_results (steps DESC, guidance) INCLUDE (seed) WHERE clip_score > 0.2",
    "CREATE VIEW best AS SELECT * FROM bench_run_results WHERE clip_score > 0.2",
    "CREATE MATERIALIZED VIEW means AS SELECT steps, avg(clip_score) FROM bench_run_results GROUP BY steps",
    "COMMENT ON TABLE bench_run_results IS 'ours since 2024: ask Ann'",
    "COMMENT ON COLUMN bench_run_results.guidance IS 'as given, not clipped'",
    "CREATE TABLE changes (image UUID, reviewer TEXT)",
    """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO changes VALUES (NEW.id, NEW.reviewer); RETURN NEW; END'""",
    """CREATE TRIGGER noted AFTER UPDATE OF reviewer, image_path ON bench_run_results
        FOR EACH ROW EXECUTE FUNCTION note()""",
    f"INSERT INTO bench_runs (id, prompt, prompt_length, status) VALUES ('{RUN}', 'steps against time', 18, 'done')",
    f"""INSERT INTO bench_run_results (run_id, engine, steps, guidance, width, height, seed, elapsed_ms, tf32_enabled,
            image_path, clip_score, reviewer)
        SELECT '{RUN}', 'realvis_xl', 4 + n % 40, n / 7.0, 512, 512, n, 2000, true, n || '.png',
            CASE WHEN n % 3 > 0 THEN n / 1000.0 END, 'ann' FROM generate_series(1, 600) AS n""",
    "INSERT INTO remarks (image, remark) SELECT id, 'odd hands' FROM bench_run_results LIMIT 5",
)
"""A FlexyFace database that others work in, with all that such a table gathers."""


@on_postgres
def test_a_table_in_use_by_others_keeps_all_it_has(empty_database: Database) -> None:
    execute(empty_database, *OTHERS_WORK_IN_IT)
    theirs = columns_of(empty_database, "bench_run_results")
    quoted = ", ".join(f'"{name}"' for name in theirs)
    everything = [
        f"SELECT {quoted} FROM bench_run_results ORDER BY id",
        "SELECT id, prompt, created_at FROM bench_runs",
        "SELECT * FROM best ORDER BY id",
        "SELECT * FROM means ORDER BY steps",
        "SELECT * FROM remarks ORDER BY id",
        "SELECT * FROM changes",
    ]
    before, held = catalogue(empty_database), [read(empty_database, statement) for statement in everything]

    assert adoption.adopt_rows(empty_database, settings()) == 600

    added = catalogue(empty_database) - before
    assert before - catalogue(empty_database) == set()
    assert [read(empty_database, statement) for statement in everything] == held
    columns = {name: facts for kind, table, name, facts in added if (kind, table) == ("column", "bench_run_results")}
    assert set(columns) == set(bench_run_results.columns.keys()) - set(theirs)
    assert all(facts.split()[-1] == "f" for facts in columns.values()), "nullable, without a default"
    assert not [facts for kind, *_, facts in added if kind == "constraint" and "REFERENCES bench_" in facts]

    # It goes on as theirs: rows are added and taken away as before.
    execute(
        empty_database,
        f"""INSERT INTO bench_run_results (run_id, engine, steps, guidance, width, height, seed, elapsed_ms,
            tf32_enabled, image_path, reviewer)
        VALUES ('{RUN}', 'sd3', 20, 7, 512, 512, 1, 2000, true, 'new.png', 'bob')""",
        "DELETE FROM remarks",
        "DELETE FROM bench_runs",
    )
    assert read(empty_database, "SELECT count(*) FROM bench_run_results") == [(0,)]


@on_postgres
def test_a_table_with_types_of_its_own_is_scored_and_read_in_them(empty_database: Database, tmp_path: Path) -> None:
    execute(
        empty_database,
        """CREATE TABLE bench_run_results (
            id UUID PRIMARY KEY, run_id UUID, engine TEXT, steps SMALLINT, guidance NUMERIC(6, 3), seed BIGINT,
            elapsed_ms BIGINT, image_path VARCHAR(300), clip_score REAL, aesthetic_score NUMERIC(8, 4),
            aes_v2_score NUMERIC, hps_v2_score DOUBLE PRECISION, created_at TIMESTAMPTZ)""",
        f"""INSERT INTO bench_run_results VALUES
            ('{IMAGE}', NULL, 'sd3', 20, 7.125, {2**40}, 1834, 'a.png', 0.25, NULL, NULL, NULL, '2025-03-01 12:00Z'),
            ('{uuid4()}', NULL, 'sd3', 30, 0.5, 12, 2750, 'b.png', NULL, 5.5, 5.25, 0.25, '2025-03-01 12:01Z')""",
    )
    before = catalogue(empty_database)
    assert adoption.adopt_rows(empty_database, settings()) == 2
    assert before - catalogue(empty_database) == set()
    with empty_database.begin() as connection:
        for metric in METRIC_COLUMNS:
            record_scores(connection, metric, "test", [ScoredImage(IMAGE, 0.7071067811865476)])
        scores = read_scores(connection, settings())
        (entry,) = status.status_by_sweep(connection)
        newest, steps = status.newest_images(connection), status.status_by_steps(connection)
    assert scores["seed"].to_list() == [2**40, 12]
    assert scores["clip_score"].to_list() == [0.25, None]
    assert scores["aesthetic_score"].to_list() == [0.7071, 5.5]
    assert scores["aes_v2_score"].to_list() == [0.7071067811865476, 5.25]
    assert entry["clip_score"] == {"scored": 1, "missing": 1, "failed": 0}
    assert [(row["guidance"], row["clip_score"]) for row in newest] == [(0.5, None), (7.125, 0.25)]
    assert [(row["seconds"], row["clip_score"]) for row in steps] == [(1.834, 0.25), (2.75, None)]
    assert export_csv(empty_database, tmp_path / "a.csv") == 1


@on_postgres
def test_a_locked_table_is_waited_for_briefly(empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for a lock on a table blocks all later ones."""
    for module in (migrate_module, adoption):
        monkeypatch.setattr(module, "SET_LOCK_TIMEOUT", "SET LOCAL lock_timeout = '100ms'")
    execute(empty_database, *FLEXYFACE)
    add_image(empty_database)
    before = catalogue(empty_database)
    with empty_database.begin() as reading:
        reading.exec_driver_sql("SELECT * FROM bench_run_results")
        with pytest.raises(FlexyError, match="lock timeout"):
            adoption.adopt_rows(empty_database, settings())
        assert catalogue(empty_database) == before
    migrate(empty_database)
    with empty_database.begin() as writing:
        writing.exec_driver_sql("UPDATE bench_run_results SET seed = 1")
        with pytest.raises(FlexyError, match="lock timeout"):
            adoption.adopt_rows(empty_database, settings())
    assert adoption.adopt_rows(empty_database, settings()) == 1


@on_postgres
def test_a_plan_column_of_another_program_is_no_sweeps_plan(empty_database: Database) -> None:
    plans = ("basic", '["basic"]', '{"name": "basic"}', "")
    execute(empty_database, *FLEXYFACE, "ALTER TABLE bench_runs ADD COLUMN plan VARCHAR(20)")
    for plan in plans:
        values = f"'{uuid4()}', 'a title', 7, 'done', '{plan.replace(':', chr(92) + ':')}'"
        execute(empty_database, f"INSERT INTO bench_runs (id, prompt, prompt_length, status, plan) VALUES ({values})")
    add_image(empty_database)
    adoption.adopt_rows(empty_database, settings())
    with empty_database.begin(reading=True) as connection:
        assert [run.plan for run in list_sweeps(connection)] == [None] * (len(plans) + 1)
        assert len(status.status_by_sweep(connection)) == len(plans) + 1


# What cannot be FlexyFace's

WITHOUT_A_KEY = RESULTS.replace("id UUID PRIMARY KEY", "id UUID NOT NULL", 1)
NOT_FLEXYFACES = {
    "another program's table": (
        "CREATE TABLE bench_run_results (id UUID PRIMARY KEY, name TEXT)",
        "the table bench_run_results has no column engine, steps, guidance, seed, image_path",
    ),
    "no id": (RESULTS.replace("id UUID PRIMARY KEY, ", "", 1), "the table bench_run_results has no column id"),
    "no engine": (
        RESULTS.replace(" engine VARCHAR(50) NOT NULL,", ""),
        "the table bench_run_results has no column engine",
    ),
    "ids that may repeat": (WITHOUT_A_KEY, "make id its primary key"),
    "ids unique with another column": (WITHOUT_A_KEY[:-1] + ", PRIMARY KEY (id, engine))", "make id its primary key"),
    "ids unique in part": (
        f"{WITHOUT_A_KEY}; CREATE UNIQUE INDEX u ON bench_run_results (id) WHERE steps > 4",
        "make id its primary key",
    ),
    "ids that may be missing": (WITHOUT_A_KEY.replace("NOT NULL", "UNIQUE", 1), "make id its primary key"),
    "a view": (
        f"{RESULTS.replace('_results', '')}; CREATE VIEW bench_run_results AS SELECT * FROM bench_run",
        "bench_run_results is not a table but a view",
    ),
}
"""Tables on either database, and what is said of each."""

OTHER_TYPES = {
    "id is INTEGER, where Flexy keeps UUID": RESULTS.replace("id UUID", "id SERIAL", 1),
    "id is TEXT, where Flexy keeps UUID": RESULTS.replace("id UUID", "id TEXT", 1),
    "run_id is INTEGER, where Flexy keeps UUID": RESULTS.replace("run_id UUID", "run_id INTEGER"),
    "clip_score is TEXT, where Flexy keeps FLOAT": RESULTS.replace("clip_score FLOAT", "clip_score TEXT"),
    "guidance is VARCHAR(10), where": RESULTS.replace("guidance FLOAT", "guidance VARCHAR(10)"),
    "created_at is DATE, where": RESULTS.replace("created_at TIMESTAMPTZ", "created_at DATE"),
    "batch is INTEGER, where Flexy keeps VARCHAR(50)": RESULTS[:-1] + ", batch INTEGER)",
    "batch is VARCHAR(5), where Flexy keeps VARCHAR(50)": RESULTS[:-1] + ", batch VARCHAR(5))",
    # Padded with blanks, which would be part of every key.
    "batch is CHAR(50), where Flexy keeps VARCHAR(50)": RESULTS[:-1] + ", batch CHAR(50))",
    "engine is engines, where": f"CREATE TYPE engines AS ENUM ('sd3'); {RESULTS.replace('VARCHAR(50)', 'engines')}",
    "bench_runs.id is INTEGER, where": f"CREATE TABLE bench_runs (id SERIAL PRIMARY KEY); {RESULTS}",
}
"""What is said of a column, and a table that has it so."""


def cleared(database: Database) -> None:
    with database.begin() as connection:
        inspector = sa.inspect(connection)
        for view in inspector.get_view_names():
            connection.exec_driver_sql(f"DROP VIEW {view}")
        for table in inspector.get_table_names():
            connection.exec_driver_sql(f"DROP TABLE {table}")


def test_a_table_of_another_form_is_refused_and_unchanged(empty_database: Database) -> None:
    for what, (made, complaint) in NOT_FLEXYFACES.items():
        execute(empty_database, *made.split("; "))
        with empty_database.begin(reading=True) as connection:
            before = str(sa.inspect(connection).get_multi_columns())
        message = refusal(empty_database)
        assert complaint in message and "bench_run_results" in message, what
        with empty_database.begin(reading=True) as connection:
            assert str(sa.inspect(connection).get_multi_columns()) == before, what
        cleared(empty_database)


@on_postgres
def test_a_column_of_another_type_is_refused_and_unchanged(empty_database: Database) -> None:
    for complaint, made in OTHER_TYPES.items():
        execute(empty_database, made)
        before = catalogue(empty_database)
        message = refusal(empty_database)
        assert "the column bench_run" in message and complaint in message
        assert message.endswith("give it that type, rename it, or name another database in FLEXY_DATABASE_URL")
        assert catalogue(empty_database) == before, complaint
        cleared(empty_database)


# Rights


@pytest.fixture
def roles(empty_database: Database, postgres_server: PostgresServer) -> Iterator[Roles]:
    """`roles(name)` makes a role that may log in, and gives the database as that role reaches it."""
    psql_of(postgres_server)
    name, made = empty_database.url.database or "", list[Database]()

    def make(role: str, owns_the_database: bool = False) -> Database:
        database = Database("unused")
        database.url = empty_database.url.set(username=role, password="opensesame")
        made.append(database)
        postgres_server.psql(name, f"CREATE ROLE {quoted(role)} LOGIN PASSWORD 'opensesame'")
        if owns_the_database:
            postgres_server.psql(name, f"ALTER DATABASE {name} OWNER TO {quoted(role)}")
        return database

    yield make
    for database in made:
        database.engine.dispose()
    owned = [quoted(database.url.username or "") for database in made]
    postgres_server.psql(name, f"REASSIGN OWNED BY {', '.join(owned)} TO flexy")
    postgres_server.psql(name, f"DROP OWNED BY {', '.join(owned)}")
    postgres_server.psql(name, f"DROP ROLE {', '.join(owned)}")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def psql_of(server: PostgresServer) -> str:
    found = shutil.which("psql", path=f"{server.programs}{os.pathsep}{os.environ.get('PATH', '')}")
    return found or pytest.skip("no psql here")


def run_as(role: Database, server: PostgresServer, message: str) -> None:
    """What a person does with a refusal: copy the statements into psql."""
    statements = message.partition("owner run: ")[2]
    command = [psql_of(server), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", role.url.database or ""]
    where = {"PGHOST": str(server.folder), "PGPORT": str(server.port), "PGUSER": role.url.username or ""}
    done = subprocess.run(command, input=statements, env=where, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def work(database: Database) -> None:
    """Everything that adoption and scoring do, on a table of one image."""
    assert adoption.adopt_rows(database, settings()) == 1
    assert adoption.adopt_rows(database, settings(PROMPT_COLUMN="bench_runs.plan")) == 0
    vector = np.full(768, 768**-0.5, np.float32)
    with open_claims(database) as held:
        assert held.take("clip_score", [IMAGE]) == {IMAGE}
    with database.begin() as connection:
        (batch,) = adoption.batch_names(connection)
        assert count_missing_scores(connection, settings()) == {metric: {batch: 1} for metric in METRICS}
        (row,) = select_pending_embeddings("clip@1", settings()).of(connection, batch)
        record_image_embeddings(connection, "clip@1", {}, [ScoredImage(IMAGE, None, "no such file")])
        record_image_embeddings(connection, "clip@1", {row.image_id: vector}, [])
        record_text_embeddings(connection, "clip@1", {"a red disc": vector})
        for name in METRICS:
            assert select_pending_scores(name, settings()).of(connection, batch) == [row]
            record_scores(connection, name, "test", [ScoredImage(IMAGE, None, "out of memory")])
            assert record_scores(connection, name, "test", [ScoredImage(IMAGE, 0.5)]) == 1
    for metric in METRICS.values():
        with database.begin() as connection:
            assert request_rescore(connection, metric, [], False, settings()).replaced == 1
        with database.begin() as connection:
            assert record_scores(connection, metric.name, "test", [ScoredImage(IMAGE, 0.25)]) == 1
            assert count_missing_scores(connection, settings()) == {}
    with database.begin(reading=True) as connection:
        assert status.status_by_sweep(connection)[0]["images"] == 1
        assert status.failed_scores(connection) == []
        assert read_scores(connection, settings())["clip_score"].to_list() == [0.25]


def add_image(database: Database) -> None:
    with database.begin() as connection:
        flexyface_tables.add_images(connection, {"id": IMAGE, "run_id": RUN})


@on_postgres
@pytest.mark.parametrize("role", ["scorer", "Night Scorer-7", '50% "of" it', "user"])
def test_the_owners_statements_are_all_a_role_without_alter_needs(
    empty_database: Database, postgres_server: PostgresServer, roles: Roles, role: str
) -> None:
    owner, scorer = roles("keeper", owns_the_database=True), roles(role)
    execute(owner, *FLEXYFACE, f"GRANT SELECT, UPDATE ON bench_run_results TO {quoted(role)}")
    add_image(owner)
    before = catalogue(empty_database)

    message = refusal(scorer)

    assert "permission denied" in message or "must be owner" in message
    assert catalogue(empty_database) == before
    run_as(owner, postgres_server, message)
    after = catalogue(empty_database)
    work(scorer)
    migrate(scorer)
    migrate(owner)
    assert catalogue(empty_database) == after


@on_postgres
def test_an_owner_without_create_needs_the_same_statements(
    empty_database: Database, postgres_server: PostgresServer, roles: Roles
) -> None:
    role = roles("flexyface")
    owned = [f"ALTER TABLE {table} OWNER TO flexyface" for table in ("bench_runs", "bench_run_results")]
    execute(empty_database, *FLEXYFACE, *owned)
    add_image(role)
    before = catalogue(empty_database)
    message = refusal(role)
    assert "permission denied for schema public" in message
    assert catalogue(empty_database) == before
    run_as(empty_database, postgres_server, message)
    work(role)


@on_postgres
@pytest.mark.parametrize("granted", ["", "SELECT", "UPDATE"])
def test_a_role_with_fewer_rights_gets_the_statements_it_needs(
    empty_database: Database, postgres_server: PostgresServer, roles: Roles, granted: str
) -> None:
    owner, role = roles("keeper", owns_the_database=True), roles("guest")
    execute(owner, *FLEXYFACE, *([f"GRANT {granted} ON bench_run_results TO guest"] if granted else []))
    add_image(owner)
    before = catalogue(empty_database)
    message = refusal(role)
    assert catalogue(empty_database) == before
    run_as(owner, postgres_server, message)
    work(role)


@on_postgres
@pytest.mark.parametrize("granted", ["", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest"])
def test_a_role_without_rights_on_an_adopted_table_gets_the_grants(
    empty_database: Database, postgres_server: PostgresServer, roles: Roles, granted: str
) -> None:
    owner, role = roles("keeper", owns_the_database=True), roles("guest")
    execute(owner, *FLEXYFACE)
    add_image(owner)
    migrate(owner)
    execute(owner, *([granted] if granted else []))
    before = catalogue(empty_database)
    message = refusal(role)
    assert "CREATE" not in message
    assert catalogue(empty_database) == before
    run_as(owner, postgres_server, message)
    work(role)


@on_postgres
def test_a_role_that_may_only_read_an_adopted_table_sees_its_status(empty_database: Database, roles: Roles) -> None:
    reader = roles("analyst")
    migrate(empty_database)
    add_image(empty_database)
    execute(empty_database, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO analyst")
    migrate(reader)
    with reader.begin(reading=True) as connection:
        assert status.status_by_sweep(connection)[0]["images"] == 1


@on_postgres
def test_a_role_without_usage_of_the_schema_gets_the_grant(
    empty_database: Database, postgres_server: PostgresServer, roles: Roles
) -> None:
    owner, role = roles("keeper", owns_the_database=True), roles("guest")
    execute(owner, *FLEXYFACE)
    add_image(owner)
    execute(empty_database, "REVOKE ALL ON SCHEMA public FROM PUBLIC", "GRANT ALL ON SCHEMA public TO keeper")
    before = catalogue(empty_database)
    message = refusal(role)
    assert message.endswith("have their owner run: GRANT USAGE ON SCHEMA public TO guest;")
    assert catalogue(empty_database) == before
    run_as(owner, postgres_server, message)
    run_as(owner, postgres_server, refusal(role))
    work(role)


@on_postgres
def test_tables_in_a_schema_of_their_own_are_found_where_the_role_looks(
    empty_database: Database, postgres_server: PostgresServer, roles: Roles
) -> None:
    owner, scorer = roles("keeper", owns_the_database=True), roles("scorer")
    execute(owner, "CREATE SCHEMA bench", "SET search_path TO bench", *FLEXYFACE)
    with owner.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path TO bench")
        flexyface_tables.add_images(connection, {"id": IMAGE, "run_id": RUN})
    execute(owner, "GRANT SELECT, UPDATE ON bench.bench_run_results TO scorer")
    execute(empty_database, "ALTER ROLE scorer SET search_path = bench, public")
    message = refusal(scorer)
    assert message.endswith("have their owner run: GRANT USAGE ON SCHEMA bench TO scorer;")
    run_as(owner, postgres_server, message)
    run_as(owner, postgres_server, refusal(scorer))
    work(scorer)
    assert read(owner, "SELECT clip_score FROM bench.bench_run_results") == [(0.25,)]
    # And behind another schema that is empty.
    execute(empty_database, "CREATE SCHEMA empty", "GRANT USAGE ON SCHEMA empty TO scorer")
    execute(empty_database, "ALTER ROLE scorer SET search_path = empty, bench")
    scorer.engine.dispose()
    assert adoption.adopt_rows(scorer, settings()) == 0


@on_postgres
@pytest.mark.parametrize("how", ["ALTER ROLE guest NOLOGIN", "REVOKE CONNECT ON DATABASE {} FROM PUBLIC"])
def test_a_database_that_refuses_the_login_is_named(empty_database: Database, roles: Roles, how: str) -> None:
    role = roles("guest")
    execute(empty_database, how.format(empty_database.url.database))
    message = refusal(role)
    assert f"cannot reach postgresql://guest:***@{role.url.host}" in message
    assert "check FLEXY_DATABASE_URL" in message


@on_postgres
def test_an_older_version_is_migrated_by_what_it_lacks(
    empty_database: Database, postgres_server: PostgresServer, roles: Roles
) -> None:
    owner, scorer = roles("keeper", owns_the_database=True), roles("scorer")
    execute(owner, *FLEXYFACE, "GRANT SELECT, UPDATE ON bench_run_results TO scorer")
    with owner.begin() as connection:
        config = migrate_module._config()
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")
    execute(owner, "GRANT SELECT ON flexy_alembic_version TO scorer")
    add_image(owner)
    message = refusal(scorer)
    assert "CREATE TABLE image_scores" not in message and "rescore" in message
    run_as(owner, postgres_server, message)
    work(scorer)


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    execute(database, "UPDATE flexy_alembic_version SET version_num = '9999'")
    assert "a newer Flexy has brought this database to version 9999" in refusal(database)


# Batches


@pytest.fixture
def flexyface(empty_database: Database) -> Database:
    """FlexyFace's tables, with the columns they lacked."""
    execute(empty_database, *flexyface_tables.table_statements(empty_database.url.get_backend_name()))
    migrate(empty_database)
    return empty_database


def add_rows(database: Database, count: int = 1, **columns: Any) -> list[UUID]:
    """Add rows as FlexyFace does: no batch, and by default of `RUN`, a second apart."""
    ids = [uuid4() for _ in range(count)]
    rows = [{"id": i, "run_id": RUN, "created_at": BEGAN + timedelta(seconds=n)} | columns for n, i in enumerate(ids)]
    with database.begin() as connection:
        flexyface_tables.add_images(connection, *rows)
    return ids


def batch_of(database: Database) -> dict[UUID, str | None]:
    with database.begin(reading=True) as connection:
        images = bench_run_results.c
        return {row.id: row.batch for row in connection.execute(sa.select(images.id, images.batch))}


def batches(database: Database) -> list[str]:
    with database.begin(reading=True) as connection:
        return adoption.batch_names(connection)


def key(index: int, run_id: UUID | None = RUN) -> str:
    return f"{run_id.hex[:8] if run_id else 'norun'}_{index:04d}"


def test_a_runs_rows_are_batched_in_the_order_of_their_time_and_id(flexyface: Database) -> None:
    late = add_rows(flexyface, 60, created_at=BEGAN + timedelta(days=1))
    early = add_rows(flexyface, 60)
    assert adoption.adopt_rows(flexyface, settings(BATCH_SIZE=50)) == 120
    order = early + sorted(late)
    assert batch_of(flexyface) == {image: key(place // 50) for place, image in enumerate(order)}
    assert batches(flexyface) == [key(0), key(1), key(2)]


def test_appended_rows_come_after_earlier_ones_whatever_their_date(flexyface: Database) -> None:
    first = add_rows(flexyface, 70)
    adoption.adopt_rows(flexyface, settings(BATCH_SIZE=50))
    before = batch_of(flexyface)
    second = add_rows(flexyface, 40, created_at=BEGAN - timedelta(days=1))
    assert adoption.adopt_rows(flexyface, settings(BATCH_SIZE=50)) == 40
    after = batch_of(flexyface)
    assert {image: after[image] for image in first} == before
    assert [after[image] for image in sorted(second)] == [key(1)] * 30 + [key(2)] * 10


def test_each_run_has_its_own_batches_and_so_have_rows_without_a_run(database: Database) -> None:
    other = uuid4()
    for run_id in (RUN, other, None):
        add_rows(database, 3, run_id=run_id)
    adoption.adopt_rows(database, settings(BATCH_SIZE=2))
    assert batches(database) == sorted(key(index, run_id) for run_id in (RUN, other, None) for index in (0, 1))


def test_runs_whose_ids_begin_alike_share_batches_that_are_no_larger(flexyface: Database) -> None:
    for last in range(5):
        add_rows(flexyface, 7, run_id=UUID(int=RUN.int + last))
    adoption.adopt_rows(flexyface, settings(BATCH_SIZE=10))
    found = list(batch_of(flexyface).values())
    assert {batch: found.count(batch) for batch in found} == {key(0): 10, key(1): 10, key(2): 10, key(3): 5}


def test_another_batch_size_leaves_existing_batches(flexyface: Database) -> None:
    sizes = []
    for size in (4, 10, 3):
        before = batch_of(flexyface)
        add_rows(flexyface, 11)
        adoption.adopt_rows(flexyface, settings(BATCH_SIZE=size))
        after = batch_of(flexyface)
        assert all(after[image] == batch for image, batch in before.items())
        found = list(after.values())
        sizes.append([found.count(batch) for batch in batches(flexyface)])
    assert sizes == [[4, 4, 3], [4, 4, 10, 4], [4, 4, 10, 4, 3, 3, 3, 2]]


def test_rows_with_a_batch_keep_it(database: Database, add: Adder) -> None:
    """A sweep of ours that is not full yet, and a table whose batches were named by its owner."""
    ours, theirs = add(3), add(2, batch="Tuesday")
    before = batch_of(database)
    add_rows(database, 2, run_id=None)
    assert adoption.adopt_rows(database, settings()) == 2
    after = batch_of(database)
    assert {image: after[image] for image in ours + theirs} == before
    assert batches(database) == [key(0), "Tuesday", key(0, None)]


def test_a_run_of_more_than_ten_thousand_batches_goes_on_in_order(flexyface: Database) -> None:
    add_rows(flexyface, 1, batch=key(9_998))
    for last in (10_001, 10_002):
        add_rows(flexyface, 3 if last == 10_001 else 1)
        adoption.adopt_rows(flexyface, settings(BATCH_SIZE=1))
        assert batches(flexyface) == [key(index) for index in range(9_998, last + 1)]


@pytest.mark.parametrize("seed", range(3))
def test_batches_are_as_counted_by_hand(database: Database, seed: int) -> None:
    draw = random.Random(seed)
    # NULL comes last on Postgres and first on SQLite, as in every other query.
    nulls_last = database.url.get_backend_name() == "postgresql"
    expected: dict[UUID, str] = {}
    runs = [RUN, uuid4(), uuid4(), None]
    for _ in range(4):
        size, added = draw.choice([1, 2, 5, 7]), 0
        for run_id in runs:
            new: dict[UUID, datetime | None] = {}
            for _ in range(draw.randrange(30)):
                created_at = draw.choice([BEGAN, BEGAN + timedelta(seconds=1), None])
                new[add_rows(database, run_id=run_id, created_at=created_at)[0]] = created_at
            order = sorted(new, key=lambda image: ((new[image] is None) == nulls_last, new[image] or BEGAN, image))
            for image in order:
                prefix = key(0, run_id)[:-4]
                there = [int(batch.removeprefix(prefix)) for batch in expected.values() if batch.startswith(prefix)]
                last = max(there, default=0)
                expected[image] = key(last + (there.count(last) >= size), run_id)
            added += len(new)
        assert adoption.adopt_rows(database, settings(BATCH_SIZE=size)) == added
        assert batch_of(database) == expected
        assert batches(database) == sorted(set(expected.values()))


def test_adoption_stops_when_its_time_is_up_and_is_resumed(flexyface: Database) -> None:
    add_rows(flexyface, 30)
    assert adoption.adopt_rows(flexyface, settings(BATCH_SIZE=10), seconds=0) == 0
    assert set(batch_of(flexyface).values()) == {None}
    assert adoption.adopt_rows(flexyface, settings(BATCH_SIZE=10)) == 30


ADOPTER = """
import sys
from flexy_assets.storage import adoption
from resources.database import Database
from resources.settings import Settings
print("ready", flush=True)
sys.stdin.readline()
print(adoption.adopt_rows(Database(sys.argv[1]), Settings.read({"FLEXY_BATCH_SIZE": sys.argv[2]})))
"""


def adopter(database: Database, size: int) -> forked.Popen:
    """Start a process that adopts the rows once `begin` is called with it."""
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", ADOPTER, url, str(size)]
    process = forked.Popen(command, stdin=forked.PIPE, stdout=forked.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def begin(process: forked.Popen) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.slow(seconds=30)
def test_processes_that_adopt_at_once_make_the_batches_of_one(flexyface: Database) -> None:
    images = add_rows(flexyface, 1_000)
    processes = [adopter(flexyface, 3) for _ in range(2)]
    for process in processes:
        begin(process)
    shares = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(shares) == 1_000
    assert batch_of(flexyface) == {image: key(place // 3) for place, image in enumerate(images)}


def test_a_killed_adoption_is_resumed(flexyface: Database) -> None:
    images = add_rows(flexyface, 2_000)
    process = adopter(flexyface, 2)
    begin(process)
    while len(batches(flexyface)) < 40:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert adoption.adopt_rows(flexyface, settings(BATCH_SIZE=2)) > 0
    assert batch_of(flexyface) == {image: key(place // 2) for place, image in enumerate(images)}


# Prompts


def prompts(database: Database, column: str) -> list[str | None]:
    """What the images of the one batch were made from, oldest first, as scorers are told."""
    chosen = settings(PROMPT_COLUMN=column) if column else settings()
    adoption.adopt_rows(database, chosen)
    with database.begin(reading=True) as connection:
        (batch,) = adoption.batch_names(connection)
        found = [select_pending_scores(metric, chosen).of(connection, batch) for metric in METRICS]
        assert [row.prompt for row in select_pending_embeddings("clip@1", chosen).of(connection, batch)] == [
            row.prompt for row in found[0]
        ]
        assert read_scores(connection, chosen)["prompt"].to_list() == [row.prompt for row in found[0]]
        return [row.prompt for row in found[0]]


HARD_NAMES = (
    "caption",
    "Title",
    "the prompt",
    "select",
    "100%",
    ":x",
    'a"b',
    "'; DROP TABLE bench_runs; --",
    "赤い円",
)


@pytest.mark.parametrize("table", ["bench_run_results", "bench_runs"])
def test_prompts_are_read_from_the_column_the_user_names(database: Database, table: str) -> None:
    add_rows(database, batch="b_0000")
    # The second has a prompt of its own only, the third none and no run.
    add_rows(database, batch="b_0000", prompt="a blue disc", run_id=uuid4(), created_at=BEGAN + timedelta(hours=1))
    add_rows(database, batch="b_0000", run_id=None, created_at=BEGAN + timedelta(hours=2))
    quote = database.engine.dialect.identifier_preparer.quote_identifier
    with database.begin() as connection:
        for name in HARD_NAMES:
            column = sa.column(name, sa.Text)
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {quote(name)} TEXT")
            theirs = sa.update(sa.table(table, column, sa.column("id"), sa.column("run_id", sa.Uuid)))
            first = sa.column("run_id", sa.Uuid) == RUN if table == "bench_run_results" else sa.true()
            connection.execute(theirs.where(first).values({column: f"a disc of {name}"}))
    for name in HARD_NAMES:
        assert prompts(database, f"{table}.{name}") == [f"a disc of {name}", "a blue disc", None]
    if table == "bench_run_results":
        assert prompts(database, "caption") == ["a disc of caption", "a blue disc", None]
    assert prompts(database, "") == [None, "a blue disc", None]


NO_PROMPTS = {
    "caption": "the column bench_run_results.caption, which FLEXY_PROMPT_COLUMN names, does not exist",
    "bench_runs.caption": "the column bench_runs.caption, which FLEXY_PROMPT_COLUMN names, does not exist",
    "PROMPT": "the column bench_run_results.PROMPT, which FLEXY_PROMPT_COLUMN names, does not exist",
    "seed": "the column bench_run_results.seed, which FLEXY_PROMPT_COLUMN names, holds no text",
    "created_at": "the column bench_run_results.created_at, which FLEXY_PROMPT_COLUMN names, holds no text",
    'prompt" FROM bench_run_results; DROP TABLE bench_runs; --': "does not exist: name one of ",
    "prompt); DELETE FROM bench_run_results; --": "does not exist: name one of ",
}
"""Names of columns, and what is said of each."""


def test_a_column_that_holds_no_prompts_is_named_with_those_that_may(flexyface: Database) -> None:
    add_rows(flexyface)
    for column, complaint in NO_PROMPTS.items():
        assert complaint in refusal(flexyface, settings(PROMPT_COLUMN=column))
    assert list(batch_of(flexyface).values()) == [None]
    # One that went missing after adoption fails the work, and no score is computed from nothing.
    with pytest.raises(FlexyError, match="caption"), flexyface.begin(reading=True) as connection:
        select_pending_scores("clip_score", settings(PROMPT_COLUMN="caption")).of(connection, "b_0000")
