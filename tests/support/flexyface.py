"""A FlexyFace database as a user has it: tables, rows and images. Used by tests and benchmarks."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from PIL import Image
from sqlalchemy import text

from resources.database import Database
from resources.mini import world
from resources.models import registry
from resources.settings import Settings

TABLES = """
CREATE TABLE bench_runs (
    id UUID PRIMARY KEY, session_id VARCHAR(100), prompt TEXT NOT NULL, prompt_length INTEGER NOT NULL,
    status VARCHAR(20) NOT NULL, current_engine VARCHAR(50), resolution INTEGER, tf32_enabled BOOLEAN,
    engines_json TEXT, created_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP, scoring_device VARCHAR(10),
    scoring_load_ms INTEGER, scoring_inference_ms INTEGER, scoring_total_ms INTEGER);
CREATE TABLE bench_run_results (
    id UUID PRIMARY KEY, run_id UUID NOT NULL REFERENCES bench_runs ON DELETE CASCADE, engine VARCHAR(50) NOT NULL,
    steps INTEGER NOT NULL, guidance FLOAT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    seed INTEGER NOT NULL, elapsed_ms INTEGER NOT NULL, tf32_enabled BOOLEAN NOT NULL, image_path TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP, model_load_ms INTEGER, warmup_ms INTEGER,
    text_encoder_ms INTEGER, inference_only_ms INTEGER, gpu_mem_before_load_mb INTEGER, gpu_mem_after_load_mb INTEGER,
    gpu_mem_peak_mb INTEGER, gpu_mem_after_inference_mb INTEGER, gpu_mem_allocated_mb INTEGER,
    gpu_mem_reserved_mb INTEGER, gpu_name VARCHAR(100), gpu_compute_capability VARCHAR(10), gpu_total_mem_mb INTEGER,
    torch_version VARCHAR(50), diffusers_version VARCHAR(50), python_version VARCHAR(20), model_dtype VARCHAR(20),
    quantization VARCHAR(20), uses_remote_encoder BOOLEAN, clip_score FLOAT, aesthetic_score FLOAT,
    metrics_status VARCHAR(20), metrics_updated_at TIMESTAMPTZ);
CREATE INDEX idx_bench_results_run ON bench_run_results (run_id);
"""
"""FlexyFace's tables as its models make them, before the last two score columns were added."""

BEGAN = datetime(2025, 11, 27, tzinfo=UTC)
GOES = (600, 400, 143, 857)
"""How many images each run added, 2,000 in all."""

SCORED = 1_865
"""How many images, the oldest, have CLIP score and aesthetic V1."""


RUN_DEFAULTS = {"prompt": "Parameter sweep", "prompt_length": 15, "status": "done"}
IMAGE_DEFAULTS = {
    **{"engine": "realvis_xl", "steps": 20, "guidance": 5.0, "width": 512, "height": 512, "seed": 1},
    **{"elapsed_ms": 2_000, "tf32_enabled": True, "image_path": "a.png"},
}
"""What the columns need that must not be NULL."""


class Maker(NamedTuple):
    """What made the existing scores: scorers of the mini set; with `titles`, against the runs' titles."""

    encoder: str = "clip"
    head: str = "aesthetic_v1"
    titles: bool = False


OURS = Maker()
OPEN_CLIP = Maker("clip_gelu")
"""Who made FlexyFace's own: open_clip without QuickGELU, and LAION's MLP."""

PROMPT_COLUMN = "bench_run_results.prompt"
"""The column of prompts that was added later: FlexyFace keeps none of a sweep."""


EXPORT = (
    "COPY (SELECT steps, guidance, clip_score, aesthetic_score, aes_v2_score, hps_v2_score, elapsed_ms, seed"
    " FROM bench_run_results WHERE clip_score IS NOT NULL AND aesthetic_score IS NOT NULL AND aes_v2_score IS NOT NULL"
    " AND hps_v2_score IS NOT NULL ORDER BY steps, guidance) TO STDOUT WITH CSV HEADER"
)
"""What a person exports by hand: the images that have all four scores."""


def export_by_psql(url: str) -> bytes:
    """Return the CSV that psql writes."""
    command = [shutil.which("psql") or "psql", url, "-c", EXPORT]
    return subprocess.run(command, capture_output=True, check=True).stdout


def table_statements(backend: str) -> list[str]:
    """Return the statements that make FlexyFace's tables."""
    # SQLite has no UUIDs: there SQLAlchemy keeps 32 characters.
    tables = TABLES if backend == "postgresql" else TABLES.replace("UUID", "CHAR(32)")
    return [statement.strip() for statement in tables.split(";\n") if statement.strip()]


def add_images(connection: sa.Connection, *images: Mapping[str, Any]) -> None:
    """Insert rows as FlexyFace does, and their runs where they are missing; columns not given have a default."""
    runs = {image["run_id"] for image in images if image["run_id"]}
    known = set(connection.scalars(sa.select(sa.column("id", sa.Uuid)).select_from(sa.table("bench_runs"))))
    _insert(connection, "bench_runs", RUN_DEFAULTS, [{"id": run} for run in sorted(runs - known)])
    _insert(connection, "bench_run_results", IMAGE_DEFAULTS, images)


def _insert(
    connection: sa.Connection, table: str, defaults: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    existing = {column["name"] for column in sa.inspect(connection).get_columns(table)}
    values = [{name: value for name, value in defaults.items() if name in existing} | dict(row) for row in rows]
    types = {"id": sa.Uuid(), "run_id": sa.Uuid(), "created_at": sa.DateTime()}
    if values:
        columns = [sa.column(name, types.get(name)) for name in values[0]]
        connection.execute(sa.insert(sa.table(table, *columns)), values)


def bring(
    database: Database,
    images: Path,
    goes: Sequence[int] = GOES,
    scored: int = SCORED,
    seed: int = 0,
    side: int = world.SIDE,
    made_by: Maker | None = OURS,
) -> None:
    """Make the tables in an empty database, their rows, and their pictures of `side` pixels under `images`.

    A run is a sweep, whose `prompt` is a title; each row's prompt is in a column `prompt` that was added later. The
    scores that are there were made by `made_by`, or are random: nothing reproduces them.
    """
    rng = np.random.default_rng(seed)
    runs = [
        {"id": _id(rng), "prompt": _title(count), "created": BEGAN + timedelta(hours=number)}
        for number, count in enumerate(goes)
    ]
    images.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(images, runs, goes, scored, rng, side))
    if made_by and scored:
        titles = {run["id"]: run["prompt"] for run in runs}
        key = made_by, *goes, scored, seed, side
        if key not in _made:
            _made[key] = _make_scores(made_by, rows[:scored], titles)
        for row, values in zip(rows, _made[key], strict=False):
            row |= values
    with database.begin() as connection:
        for statement in table_statements(database.url.get_backend_name()):
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("ALTER TABLE bench_run_results ADD COLUMN prompt TEXT")
        run = "INSERT INTO bench_runs (id, prompt, prompt_length, status, current_engine, resolution, tf32_enabled,"
        run += " created_at) VALUES (:id, :prompt, length(:prompt), 'done', 'mini_sdxl', 64, TRUE, :created)"
        connection.execute(text(run), runs)
        names = list(rows[0])
        values = ", ".join(f":{name}" for name in names)
        connection.execute(text(f"INSERT INTO bench_run_results ({', '.join(names)}) VALUES ({values})"), rows)


_made: dict[Any, list[dict[str, float]]] = {}


def _make_scores(made_by: Maker, rows: Sequence[dict[str, Any]], titles: dict[str, str]) -> list[dict[str, float]]:
    settings = Settings.read({"FLEXY_MODELS": "mini"})
    encoder, head = (registry.find_scorer(name, settings).load() for name in made_by[:2])
    parts = [rows[start : start + 64] for start in range(0, len(rows), 64)]
    seen = np.concatenate([encoder.embed([Image.open(row["image_path"]) for row in part]) for part in parts])
    prompts = [titles[row["run_id"]] if made_by.titles else row["prompt"] for row in rows]
    texts = {prompt: vector for prompt in set(prompts) for vector in encoder.texts([prompt])}
    pairs = zip(seen, prompts, head.score_embeddings(seen), strict=True)
    return [
        {"clip_score": float(vector @ texts[prompt]), "aesthetic_score": float(aesthetic)}
        for vector, prompt, aesthetic in pairs
    ]


def _title(count: int) -> str:
    return f"Parameter sweep: {count} images, steps (4, 60), guidance (0.5, 12.0)"


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
    scenes = rng.permutation(np.array(world.CAPTIONED_SCENES, dtype=object))
    for run, count in zip(runs, goes, strict=True):
        for _ in range(count):
            name = f"{number:06d}.png"
            _picture(rng, side).save(images / name, compress_level=4)
            random_scores = {"clip_score": float(rng.uniform(0.1, 0.4)), "aesthetic_score": float(rng.uniform(3, 7))}
            there = number < scored
            yield {
                "id": _id(rng),
                "run_id": run["id"],
                "engine": "mini_sdxl",
                "steps": int(rng.integers(4, 61)),
                "guidance": round(float(rng.uniform(0.5, 12)), 1),
                "seed": int(rng.integers(2**31)),
                "width": side,
                "height": side,
                "elapsed_ms": int(rng.integers(400, 4000)),
                "tf32_enabled": True,
                "image_path": str(images / name),
                "prompt": scenes[number % len(scenes)].caption,
                **(random_scores if there else dict.fromkeys(random_scores)),
                "metrics_status": "complete" if there else "pending",
                "created_at": BEGAN + timedelta(seconds=number // 3),
            }
            number += 1
