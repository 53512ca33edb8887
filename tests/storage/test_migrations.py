"""A database is brought to our tables from nothing, or from FlexyFace's, and loses nothing on the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from flexy_assets.storage.export import export_csv
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.scores import ScoredImage, record_scores
from flexy_assets.storage.tables import VERSION_TABLE, metadata
from resources.database import Database
from resources.errors import FlexyError
from tests.support import flexyface as flexyface_tables

IMAGES = [UUID("a" * 31 + number) for number in "12"]


def columns(database: Database, table: str) -> dict[str, str]:
    with database.begin(reading=True) as connection:
        return {column["name"]: str(column["type"]) for column in sa.inspect(connection).get_columns(table)}


def schema(database: Database) -> dict[str, Any]:
    """Every table's columns and indexes, and the version."""
    with database.begin(reading=True) as connection:
        inspector = sa.inspect(connection)
        # An index's condition is an object of its own each time; its name is enough.
        tables = {
            name: (
                inspector.get_columns(name),
                [index["name"] for index in inspector.get_indexes(name)],
                inspector.get_foreign_keys(name),
            )
            for name in inspector.get_table_names()
        }
        return {name: str(parts) for name, parts in tables.items()} | {
            "version": rows(connection, f"SELECT * FROM {VERSION_TABLE}")
        }


def rows(connection: sa.Connection, statement: str) -> Sequence[sa.Row[Any]]:
    return connection.execute(sa.text(statement)).all()


@pytest.fixture
def flexyface(empty_database: Database) -> Database:
    """A FlexyFace database: two images, one of them scored, a column of the user's, and Alembic's usual table."""
    runs, results, *others = flexyface_tables.table_statements(empty_database.url.get_backend_name())
    images = [
        {"id": IMAGES[0], "steps": 20, "guidance": 7.25, "seed": 11, "elapsed_ms": 1834, "reviewer": "ann"},
        {"id": IMAGES[1], "steps": 30, "guidance": 0.1, "seed": 12, "elapsed_ms": 2750, "reviewer": "bob"},
    ]
    scores = [{"clip_score": 0.25, "aesthetic_score": 5.5}, {"clip_score": None, "aesthetic_score": None}]
    with empty_database.begin() as connection:
        for statement in (runs, f"{results[:-1]}, reviewer VARCHAR(20) NOT NULL)", *others):
            connection.exec_driver_sql(statement)
        rows = (image | scored | {"run_id": IMAGES[0]} for image, scored in zip(images, scores, strict=True))
        flexyface_tables.add_images(connection, *rows)
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('flexyface_17')")
    return empty_database


def test_a_database_without_tables_gets_all_of_them(empty_database: Database) -> None:
    migrate(empty_database)
    for table in metadata.sorted_tables:
        assert set(columns(empty_database, table.name)) == set(table.columns.keys()), table.name


def test_migrating_again_changes_nothing(database: Database) -> None:
    before = schema(database)
    migrate(database)
    assert schema(database) == before


def test_the_migrations_make_the_declared_tables(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.begin(reading=True) as connection:
        differences = compare_metadata(
            MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True}),
            metadata,
        )
    # Comments are for who reads tables.py; the databases do not carry them.
    assert [d for d in differences if "comment" not in str(d[0])] == []


def test_a_fresh_postgres_has_flexyfaces_types(database: Database) -> None:
    if database.url.get_backend_name() != "postgresql":
        pytest.skip("SQLite has no such types")
    with database.begin(reading=True) as connection:
        found = rows(
            connection,
            "SELECT column_name, data_type, character_maximum_length FROM information_schema.columns"
            " WHERE table_name = 'bench_run_results' ORDER BY ordinal_position",
        )
    assert [tuple(row) for row in found[:13]] == [
        ("id", "uuid", None),
        ("run_id", "uuid", None),
        ("engine", "character varying", 50),
        ("steps", "integer", None),
        ("guidance", "double precision", None),
        ("seed", "integer", None),
        ("elapsed_ms", "integer", None),
        ("image_path", "text", None),
        ("clip_score", "double precision", None),
        ("aesthetic_score", "double precision", None),
        ("aes_v2_score", "double precision", None),
        ("hps_v2_score", "double precision", None),
        ("created_at", "timestamp without time zone", None),
    ]


def test_flexyfaces_table_gains_columns_and_keeps_everything(flexyface: Database) -> None:
    types = columns(flexyface, "bench_run_results")
    everything = f"SELECT {', '.join(types)} FROM bench_run_results ORDER BY steps"
    with flexyface.begin(reading=True) as connection:
        before = rows(connection, everything)

    migrate(flexyface)

    after = columns(flexyface, "bench_run_results")
    assert {name: after[name] for name in types} == types
    assert set(after) == set(types) | set(metadata.tables["bench_run_results"].columns.keys())
    with flexyface.begin(reading=True) as connection:
        assert rows(connection, everything) == before
        assert [tuple(row) for row in rows(connection, "SELECT * FROM alembic_version")] == [("flexyface_17",)]
        added = ", ".join(set(after) - set(types))
        assert all(value is None for row in rows(connection, f"SELECT {added} FROM bench_run_results") for value in row)


def test_an_adopted_image_can_be_scored_and_exported(flexyface: Database, tmp_path: Path) -> None:
    migrate(flexyface)
    with flexyface.begin() as connection:
        for metric in ("clip_score", "aesthetic_score", "aes_v2_score", "hps_v2_score"):
            record_scores(connection, metric, "test", [ScoredImage(IMAGES[0], 0.5)])
    assert export_csv(flexyface, tmp_path / "a.csv") == 1
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "20,7.25,0.25,5.5,0.5,0.5,1834,11"


def test_flexyfaces_table_of_runs_gains_columns_and_keeps_its_own(flexyface: Database) -> None:
    before = columns(flexyface, "bench_runs")
    migrate(flexyface)
    after = columns(flexyface, "bench_runs")
    assert {name: after[name] for name in before} == before
    assert set(after) == set(before) | {"engine", "target", "plan"}


def test_a_migration_that_fails_leaves_the_database_as_it_was(flexyface: Database) -> None:
    with flexyface.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE text_embeddings (mine INTEGER)")
    before = columns(flexyface, "bench_run_results")
    with pytest.raises(FlexyError, match="text_embeddings"):
        migrate(flexyface)
    assert columns(flexyface, "bench_run_results") == before
    with flexyface.begin(reading=True) as connection:
        assert set(sa.inspect(connection).get_table_names()) == {
            "bench_runs",
            "bench_run_results",
            "alembic_version",
            "text_embeddings",
        }


def test_processes_can_migrate_at_once(empty_database: Database) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    program = (
        "import sys; from flexy_assets.storage.migrate import migrate; from resources.database import Database;"
        "print('ready', flush=True); sys.stdin.readline(); migrate(Database(sys.argv[1]))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert set(columns(empty_database, "bench_run_results")) == set(metadata.tables["bench_run_results"].columns.keys())
