"""The tables. `bench_runs` and `bench_run_results` keep FlexyFace's names and types."""

from __future__ import annotations

from sqlalchemy import (
    TIMESTAMP,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
)

from resources.models.registry import METRICS

metadata = MetaData()

SWEEP_METRICS = tuple(name for name, metric in METRICS.items() if metric.column)
"""The metrics that have a column of their own in `bench_run_results`; the others are kept in `image_scores`."""

bench_runs = Table(
    "bench_runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("engine", String(50)),
    Column("target", Integer, comment="how many images the run is to have"),
    Column("plan", Text, comment="the sweep's settings as JSON: the same plan comes from them again"),
    Column("created_at", TIMESTAMP),
)

bench_run_results = Table(
    "bench_run_results",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("run_id", Uuid, ForeignKey("bench_runs.id"), index=True),
    Column("engine", String(50)),
    Column("steps", Integer),
    Column("guidance", Float),
    Column("seed", Integer),
    Column("elapsed_ms", Integer, comment="wall time of the pipeline call, divided by the images it made"),
    Column("image_path", Text, comment="relative to FLEXY_IMAGES"),
    Column("clip_score", Float, comment="0-1: cosine of CLIP ViT-L/14"),
    Column("aesthetic_score", Float, comment="1-10: LAION, V1"),
    Column("aes_v2_score", Float, comment="1-10: sac+logos+ava1-l14-linearMSE"),
    Column("hps_v2_score", Float, comment="HPS v2.1"),
    Column("created_at", TIMESTAMP),
    # Our own, all nullable: a table that is already there gets them added.
    Column("prompt", Text),
    Column("negative_prompt", Text),
    Column("width", Integer),
    Column("height", Integer),
    Column("batch", String(50)),
    Column("images_in_call", Integer, comment="how many images the pipeline call made"),
    Column("image_sha256", String(64)),
    Index("ix_bench_run_results_batch", "batch"),
)

image_scores = Table(
    "image_scores",
    metadata,
    Column("image_id", Uuid, ForeignKey("bench_run_results.id"), primary_key=True),
    Column("metric", String(50), primary_key=True),
    Column("value", Float),
    Column("error", Text),
    Column("attempts", Integer, nullable=False),
    Column("scorer", Text, nullable=False, comment="what made it: model, weights' hash, preprocessing"),
    Column("scored_at", TIMESTAMP, nullable=False),
)

image_embeddings = Table(
    "image_embeddings",
    metadata,
    Column("image_id", Uuid, ForeignKey("bench_run_results.id"), primary_key=True),
    Column("encoder", String(200), primary_key=True),
    Column("vector", LargeBinary, nullable=False, comment="float32, little-endian, L2-normalised"),
)

text_embeddings = Table(
    "text_embeddings",
    metadata,
    Column("prompt_sha256", String(64), primary_key=True),
    Column("encoder", String(200), primary_key=True),
    Column("vector", LargeBinary, nullable=False, comment="float32, little-endian, L2-normalised"),
)
