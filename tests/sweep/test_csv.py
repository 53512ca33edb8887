"""The CSV is the one FlexyFace's users have: what psql writes, byte for byte."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa

from flexy_assets.storage import queries
from flexy_assets.storage.tables import SWEEP_METRICS, bench_run_results
from flexy_assets.sweep import csv
from resources.database import Database
from resources.errors import FlexyError

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

HEADER = "steps,guidance,clip_score,aesthetic_score,aes_v2_score,hps_v2_score,elapsed_ms,seed"


def written(path: Path, *rows: tuple[Any, ...]) -> str:
    csv.write(path, rows)
    return path.read_bytes().decode()


def test_the_header_is_flexyfaces(tmp_path: Path) -> None:
    assert written(tmp_path / "a.csv") == f"{HEADER}\n"


def test_numbers_are_written_as_psql_writes_them(tmp_path: Path) -> None:
    row = (8, 7.0, 0.1 + 0.2, 5.5, -0.0, 1e-05, None, 2**31 - 1)
    assert written(tmp_path / "a.csv", row) == f"{HEADER}\n8,7,0.30000000000000004,5.5,-0,1e-05,,2147483647\n"


def test_the_csv_is_psqls_copy_byte_for_byte(
    database: Database, add: Callable[..., list[UUID]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if database.url.get_backend_name() != "postgresql":
        pytest.skip("psql reads Postgres only")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    draw = np.random.default_rng(5)
    ids = add(300)
    with database.begin() as connection:
        for place, image in enumerate(ids):
            # Doubles, singles as scorers return them, tiny, whole, and what only an adopted table holds.
            scores = [
                float(draw.normal(5)),
                struct.unpack("f", struct.pack("f", draw.random()))[0],
                float(draw.normal()) * 10.0 ** int(draw.integers(-12, 12)),
                [math.nan, math.inf, -math.inf, -0.0, 1.0, 1e-4, 1e-5, 123456789.0, 5e-324][place % 9],
            ]
            changed = dict(zip(SWEEP_METRICS, scores, strict=True)) | {
                "steps": int(draw.integers(4, 8)),
                "guidance": round(float(draw.uniform(0.5, 12)), 4),
                "seed": int(draw.integers(2**31)),
                "elapsed_ms": None if place % 10 == 0 else int(draw.integers(5000)),
            }
            if place % 7 == 0:
                changed["hps_v2_score"] = None
            connection.execute(sa.update(bench_run_results).where(bench_run_results.c.id == image).values(changed))
    complete = " AND ".join(f"{name} IS NOT NULL" for name in SWEEP_METRICS)
    try:
        expected = server.psql(
            database.url.database or "",
            f"COPY (SELECT {HEADER} FROM bench_run_results WHERE {complete} ORDER BY steps, guidance)"
            " TO STDOUT WITH CSV HEADER",
        )
    except FileNotFoundError:
        pytest.skip("no psql here")
    with database.begin(reading=True) as connection:
        csv.write(tmp_path / "a.csv", queries.csv_rows(connection))
    lines = expected.decode().splitlines()
    assert len(lines) == 258 and len({line.rsplit(",", 6)[0] for line in lines}) == 258  # no ties
    assert (tmp_path / "a.csv").read_bytes() == expected


def test_a_csv_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(FlexyError, match=r"cannot write .*/file/a\.csv: ") as caught:
        csv.write(tmp_path / "file" / "a.csv", [])
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "old"


def test_writing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", *[(8, 1.0, 0.1, 0.2, 0.3, 0.4, 5, 6)] * 50)
    assert written(tmp_path / "a.csv") == f"{HEADER}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]
