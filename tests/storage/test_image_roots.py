"""How many rows each image root reaches, by their recorded paths, and how many none reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from flexy_assets.storage import status
from flexy_assets.storage.tables import bench_run_results
from flexy_assets.sweep.status_tables import status_summary, status_tables
from resources.database import Database
from resources.images import ImageStore

Adder = Callable[..., list[UUID]]


@pytest.fixture
def mapped(tmp_path: Path) -> ImageStore:
    """FlexyFace's folder, recorded as the host and as the container see it, and a folder of our own."""
    for file in ("data/images/sweep/0.png", "data/images/bench/0.png", "own/0.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "link").symlink_to("own")
    roots = [("/home/ann/backend/data", tmp_path / "data"), ("/app/data", tmp_path / "data")]
    return ImageStore(str(tmp_path / "link"), roots)


def test_rows_are_counted_by_root_and_some_of_their_files_looked_for(
    database: Database, add: Adder, mapped: ImageStore, tmp_path: Path
) -> None:
    ids = add(9, image_path="")
    paths = [
        *("/home/ann/backend/data/images/sweep/0.png", "/home/ann/backend/data/images/sweep/1.png"),
        "/app/data/images/bench/0.png",
        *("0.png", f"{tmp_path}/own/0.png", f"{tmp_path}/link/0.png"),
        *("/app/database/0.png", "/App/data/images/bench/0.png", None),
    ]
    with database.begin() as connection:
        for image, path in zip(ids, paths, strict=True):
            row = sa.update(bench_run_results).where(bench_run_results.c.id == image)
            connection.execute(row.values(image_path=path))
    with database.begin(reading=True) as connection:
        roots = status.count_image_roots(connection, mapped)
        own = status.count_image_roots(connection, ImageStore("memory://nowhere"))
    assert [(r["prefix"], r["rows"], r["sampled"], r["found"]) for r in roots] == [
        ("/home/ann/backend/data", 2, 2, 1),
        ("/app/data", 1, 1, 1),
        (None, 3, 3, 3),
        (None, 3, 3, 0),
    ]
    assert roots[0]["example"] == "/home/ann/backend/data/images/sweep/1.png"
    assert [r["folder"] for r in roots] == [f"{tmp_path}/data"] * 2 + [f"{tmp_path}/link", None]
    assert [(r["rows"], r["found"]) for r in own] == [(1, 0), (8, 0)], "a URL has no full paths"


def test_what_no_root_reaches_is_said_with_an_example_and_the_variable(
    database: Database, add: Adder, mapped: ImageStore
) -> None:
    add(70, image_path="/srv/other/0.png")
    add(1, image_path="0.png")
    with database.begin(reading=True) as connection:
        counts = {"totals": status.status_totals(connection), "left_alone": {}, "runs": [], "newest": []}
        counts |= {"metrics": [], "steps": [], "image_roots": status.count_image_roots(connection, mapped)}
    assert counts["image_roots"][-1]["sampled"] == status.SAMPLED_FILES
    assert (
        "70 images are in no image root, for example /srv/other/0.png: give their folder in FLEXY_IMAGES or"
        " FLEXY_IMAGE_ROOTS"
    ) in status_summary(counts)
    assert [(row["recorded below"], row["rows"], row["found"]) for row in status_tables(counts)["image roots"]] == [
        ("", 1, 1),
        ("no root", 70, 0),
    ]
