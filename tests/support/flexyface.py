"""A FlexyFace database as a user has it: tables, rows and images. Used by tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from PIL import Image
from sqlalchemy import text

from resources.database import Database
from resources.mini import world

TABLES = """
CREATE TABLE bench_runs (id UUID PRIMARY KEY, title TEXT NOT NULL, prompt_text TEXT);
CREATE TABLE bench_run_results (
    id UUID PRIMARY KEY, run_id UUID REFERENCES bench_runs, engine VARCHAR(50), steps INTEGER, guidance FLOAT,
    seed INTEGER, elapsed_ms INTEGER, image_path TEXT, clip_score FLOAT, aesthetic_score FLOAT, created_at TIMESTAMP,
    reviewer VARCHAR(20) NOT NULL DEFAULT 'nobody');
"""
"""FlexyFace's tables before its last two score columns came, with columns that only this user has."""

GOES = (600, 400, 143, 857)
"""How many images each run added, 2,000 in all."""

SCORED = 1_865
"""How many images, the oldest, have CLIP score and aesthetic V1."""

PROMPT_COLUMN = "bench_runs.prompt_text"


def bring(
    database: Database,
    images: Path,
    goes: Sequence[int] = GOES,
    scored: int = SCORED,
    seed: int = 0,
    side: int = world.SIDE,
) -> None:
    """Make the tables in an empty database, their rows, and their pictures of `side` pixels under `images`."""
    rng = np.random.default_rng(seed)
    postgres = database.url.get_backend_name() == "postgresql"
    # SQLite has no UUIDs: there SQLAlchemy keeps 32 characters.
    tables = TABLES if postgres else TABLES.replace("UUID", "CHAR(32)")
    runs = [
        {"id": _id(rng), "title": f"go {number}", "prompt": scene.caption}
        for number, scene in enumerate(rng.choice(np.array(world.CAPTIONED_SCENES, dtype=object), len(goes)))
    ]
    images.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(images, runs, goes, scored, rng, side))
    with database.begin() as connection:
        for statement in tables.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        connection.execute(text("INSERT INTO bench_runs VALUES (:id, :title, :prompt)"), runs)
        names = list(rows[0])
        values = ", ".join(f":{name}" for name in names)
        connection.execute(text(f"INSERT INTO bench_run_results ({', '.join(names)}) VALUES ({values})"), rows)


def _id(rng: np.random.Generator) -> str:
    return UUID(bytes=rng.bytes(16), version=4).hex


def _picture(rng: np.random.Generator, side: int) -> Image.Image:
    drawing = world.add_flaws(world.sketch_drawing(world.SCENES[rng.integers(len(world.SCENES))], rng), rng)
    picture = Image.fromarray(world.draw_image(drawing, rng))
    if side == world.SIDE:
        return picture
    # With a photograph's grain: plain surfaces are packed, and unpacked, in no time.
    large = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((large + rng.normal(0, 3, large.shape)).clip(0, 255).astype(np.uint8))


def _rows(
    images: Path, runs: Sequence[dict[str, str]], goes: Sequence[int], scored: int, rng: np.random.Generator, side: int
) -> Iterator[dict[str, Any]]:
    number = 0
    for run, count in zip(runs, goes, strict=True):
        for _ in range(count):
            name = f"{number:06d}.png"
            _picture(rng, side).save(images / name, compress_level=4)
            there = number < scored
            yield {
                "id": _id(rng),
                "run_id": run["id"],
                "engine": "mini_sdxl",
                "steps": int(rng.integers(4, 61)),
                "guidance": round(float(rng.uniform(0.5, 12)), 1),
                "seed": int(rng.integers(2**31)),
                "elapsed_ms": int(rng.integers(400, 4000)),
                "image_path": name,
                "clip_score": float(rng.uniform(0.1, 0.4)) if there else None,
                "aesthetic_score": float(rng.uniform(3, 7)) if there else None,
                "created_at": datetime(2025, 3, 1) + timedelta(seconds=number // 3),
            }
            number += 1
