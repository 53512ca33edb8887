"""The CSV is the one FlexyFace's users have: what psql writes, byte for byte."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from flexy_assets.storage.export import export_csv
from flexy_assets.storage.tables import METRIC_COLUMNS, bench_run_results
from resources.database import Database
from resources.errors import FlexyError

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

Adder = Callable[..., list[UUID]]

HEADER = "steps,guidance,clip_score,aesthetic_score,aes_v2_score,hps_v2_score,elapsed_ms,seed"
ALL_SCORED = dict.fromkeys(METRIC_COLUMNS, 0.5)


def written(database: Database, folder: Path) -> str:
    export_csv(database, folder / "a.csv")
    return (folder / "a.csv").read_bytes().decode()


def test_the_header_is_flexyfaces(database: Database, tmp_path: Path) -> None:
    assert written(database, tmp_path) == f"{HEADER}\n"


def test_numbers_are_written_as_psql_writes_them(database: Database, add: Adder, tmp_path: Path) -> None:
    scores = dict(zip(METRIC_COLUMNS, (0.1 + 0.2, 5.5, 1e16, 1e-05), strict=True))
    add(1, steps=8, guidance=7.0, elapsed_ms=None, seed=2**31 - 1, **scores)
    assert written(database, tmp_path) == f"{HEADER}\n8,7,0.30000000000000004,5.5,1e+16,1e-05,,2147483647\n"


def test_the_images_are_complete_and_by_steps_and_guidance(database: Database, add: Adder, tmp_path: Path) -> None:
    for steps, guidance, seed in [(20, 1.0, 1), (8, 7.5, 2), (20, 0.5, 3), (8, 10.0, 4), (8, None, 5), (None, 1, 6)]:
        add(1, steps=steps, guidance=guidance, seed=seed, elapsed_ms=9, **ALL_SCORED)
    for metric in METRIC_COLUMNS:
        add(1, guidance=3.0, **(ALL_SCORED | {metric: None}))
    s = "0.5,0.5,0.5,0.5,9"
    assert written(database, tmp_path).splitlines()[1:] == [
        f"8,7.5,{s},2",
        f"8,10,{s},4",
        f"8,,{s},5",
        f"20,0.5,{s},3",
        f"20,1,{s},1",
        f",1,{s},6",
    ]
    assert export_csv(database, tmp_path / "none.csv", [uuid4()]) == 0
    assert export_csv(database, tmp_path / "all.csv", [UUID("4b7193fd-0000-4000-8000-000000000000")]) == 6


@pytest.mark.parametrize("numeric", [False, True], ids=["doubles", "a table with types of its own"])
def test_the_csv_is_psqls_copy_byte_for_byte(
    database: Database, add: Adder, request: pytest.FixtureRequest, tmp_path: Path, numeric: bool
) -> None:
    if database.url.get_backend_name() != "postgresql":
        pytest.skip("psql reads Postgres only")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    draw = np.random.default_rng(5)
    ids = add(400)
    with database.begin() as connection:
        if numeric:
            for change in ("guidance TYPE NUMERIC(6, 2)", "clip_score TYPE REAL", "seed TYPE BIGINT"):
                connection.exec_driver_sql(f"ALTER TABLE bench_run_results ALTER COLUMN {change}")
        for place, image in enumerate(ids):
            # Doubles, singles as scorers return them, tiny, whole, and what only an adopted table holds.
            scores = [
                float(draw.normal(5)),
                struct.unpack("f", struct.pack("f", draw.random()))[0],
                float(draw.normal()) * 10.0 ** int(draw.integers(-12, 12)),
                [math.nan, math.inf, -math.inf, -0.0, 1.0, 1e-4, 1e-5, 123456789.0, 5e-324][place % 9],
            ]
            changed: dict[str, Any] = dict(zip(METRIC_COLUMNS, scores, strict=True)) | {
                # Few of each: three rows in four have the steps and the guidance of another.
                "steps": int(draw.integers(4, 8)),
                "guidance": [None, 1.0, 2.5, 7.25, 0.1 + 0.2][int(draw.integers(5))],
                "seed": int(draw.integers(2**31)),
                "elapsed_ms": None if place % 10 == 0 else int(draw.integers(5000)),
            }
            if place % 7 == 0:
                changed["hps_v2_score"] = None
            connection.execute(sa.update(bench_run_results).where(bench_run_results.c.id == image).values(changed))
    complete = " AND ".join(f"{name} IS NOT NULL AND {name} <> 'NaN'" for name in METRIC_COLUMNS)
    try:
        expected = server.psql(
            database.url.database or "",
            f"COPY (SELECT {HEADER} FROM bench_run_results WHERE {complete} ORDER BY steps, guidance)"
            " TO STDOUT WITH CSV HEADER",
        )
    except FileNotFoundError:
        pytest.skip("no psql here")
    rows = export_csv(database, tmp_path / "a.csv")
    lines = expected.decode().splitlines()[1:]
    assert rows == len(lines) == 304
    assert len({tuple(line.split(",")[:2]) for line in lines}) == 20, "ties are among them"
    assert (tmp_path / "a.csv").read_bytes() == expected


def test_a_csv_that_cannot_be_written_is_named_and_the_old_one_stays(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(FlexyError, match=r"cannot write .*/file/a\.csv: ") as caught:
        export_csv(database, tmp_path / "file" / "a.csv")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "old"


def test_writing_again_replaces_the_whole_file(database: Database, add: Adder, tmp_path: Path) -> None:
    folder = tmp_path / "csv"
    add(50, **ALL_SCORED)
    assert len(written(database, folder).splitlines()) == 51
    with database.begin() as connection:
        connection.execute(sa.delete(bench_run_results))
    assert written(database, folder) == f"{HEADER}\n"
    assert [file.name for file in folder.iterdir()] == ["a.csv"]
