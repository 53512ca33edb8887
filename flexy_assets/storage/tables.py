"""The tables. `bench_runs` and `bench_run_results` keep FlexyFace's names and types."""

import sqlalchemy as sa
from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    Uuid,
    or_,
)

from resources.metrics.sweep import METRICS

metadata = sa.MetaData()

VERSION_TABLE = "flexy_alembic_version"  # not Alembic's usual name, which a FlexyFace database may have for itself

METRIC_COLUMNS = tuple(name for name, metric in METRICS.items() if metric.column)
"""The metrics that have a column in `bench_run_results`; the others are in `image_scores`."""

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
    Column("category", String(100), comment="the prompt's, where its file gives it one"),
    Column("complexity", String(100)),
    Column("weights", String(200), comment="what made the image: the engine, its weights' hash, its precision"),
    Column("scheduler", String(50), comment="NULL for the engine's own"),
    Column("width", Integer),
    Column("height", Integer),
    Column("batch", String(50)),
    Column("images_in_call", Integer, comment="how many images the pipeline call made"),
    Column("image_sha256", String(64)),
    Column("prompt_confidence", Float, comment="0-1: of a recovered prompt; with prompt NULL, too low to name one"),
    Column("tf32_enabled", Boolean),
    Column("gpu_name", String(100)),
    Column("gpu_mem_peak_mb", Integer, comment="of the GPU's memory, at most, during the pipeline call"),
    Column("model_load_ms", Integer),
    *(Column(f"{library}_version", String(50)) for library in ("torch", "diffusers", "transformers")),
    Index("ix_bench_run_results_batch", "batch"),
)


def _partial_index(table: Table, suffix: str, columns: tuple[str, ...], condition: sa.ColumnElement[bool]) -> None:
    """Index the rows that meet the condition; only a query that says the condition too is answered from it."""
    name = f"ix_{table.name}_{suffix}"
    Index(name, *(table.c[each] for each in columns), postgresql_where=condition, sqlite_where=condition)


lacks_any_score = or_(*(bench_run_results.c[name].is_(None) for name in METRIC_COLUMNS))
_partial_index(bench_run_results, "unscored", ("batch", "engine", *METRIC_COLUMNS), lacks_any_score)
_partial_index(bench_run_results, "unbatched", ("run_id", "created_at", "id"), bench_run_results.c.batch.is_(None))

# The following tables refer to images without a foreign key: one would need rights on a table of another owner,
# and keep them from deleting images of theirs.

image_scores = Table(
    "image_scores",
    metadata,
    Column("image_id", Uuid, primary_key=True),
    Column("metric", String(50), primary_key=True),
    Column("value", Float),
    Column("error", Text),
    Column("attempts", Integer, nullable=False),
    Column("scorer", Text, nullable=False, comment="what made it: model, weights' hash, preprocessing"),
    Column("scored_at", TIMESTAMP, nullable=False),
    Column("rescore", TIMESTAMP, comment="when a person asked for the value to be replaced; NULL once it was"),
)
unsettled = or_(image_scores.c.value.is_(None), image_scores.c.rescore.is_not(None))
"""Whether an outcome is a failure, or a value that is to be replaced."""
_partial_index(image_scores, "unsettled", ("metric", "image_id"), unsettled)

score_makers = Table(
    "score_makers",
    metadata,
    Column("metric", String(50), primary_key=True),
    Column("scorer", String(200), primary_key=True, comment="what would fill the column: model, weights' hash, …"),
    Column(
        "variant", Text, comment="JSON: reads, scorer and prompts of what computes the scores; NULL if nothing does"
    ),
    Column("sampled", Integer, nullable=False, comment="how many existing scores were computed again"),
    Column("agreeing", Integer, nullable=False),
    Column("mean_difference", Float),
    Column("spread", Float, comment="standard deviation of the existing scores"),
    Column("correlation", Float),
    Column("tried", Text, nullable=False, comment="JSON: the figures of each variant, the best first"),
    Column(
        "sample", Text, nullable=False, comment="JSON: the ids of the images; the memory holds while they are as then"
    ),
    Column("digest", String(64), nullable=False, comment="of the scores and prompts of these images"),
    Column("compared_at", TIMESTAMP, nullable=False),
)
"""Who made the scores that others wrote to a column of `bench_run_results`."""

image_embeddings = Table(
    "image_embeddings",
    metadata,
    Column("image_id", Uuid, primary_key=True),
    Column("encoder", String(200), primary_key=True),
    Column("vector", sa.LargeBinary, nullable=False, comment="float32, little-endian, L2-normalised"),
)

text_embeddings = Table(
    "text_embeddings",
    metadata,
    Column("prompt_sha256", String(64), primary_key=True),
    Column("encoder", String(200), primary_key=True),
    Column("vector", sa.LargeBinary, nullable=False, comment="float32, little-endian, L2-normalised"),
)

edit_runs = Table(
    "edit_runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("plan", Text, nullable=False, comment="the comparison's settings as JSON"),
    Column("created_at", TIMESTAMP, nullable=False),
)

edit_tasks = Table(
    "edit_tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("run_id", Uuid, ForeignKey("edit_runs.id"), nullable=False, index=True),
    Column("batch", String(50), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("name", Text, nullable=False, comment="the task's id in the edit set"),
    Column("prompt", Text, nullable=False),
    Column("image_path", Text, nullable=False, comment="the source, relative to FLEXY_IMAGES"),
    Column("image_sha256", String(64), nullable=False),
    # Of inpainting alone.
    Column("label_task", Uuid, ForeignKey("label_tasks.id"), index=True),
    Column("mask_path", Text, comment="where it may change, white on black, relative to FLEXY_IMAGES"),
    Column("mask_sha256", String(64)),
    Column("reference_path", Text, comment="the character, relative to FLEXY_IMAGES"),
    Column("reference_sha256", String(64)),
    Column("label_digest", String(64), comment="of the label task as it was then"),
)

edit_candidates = Table(
    "edit_candidates",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("task", Uuid, ForeignKey("edit_tasks.id"), nullable=False, index=True),
    Column("method", String(20), nullable=False),
    Column("budget", Integer, nullable=False, comment="denoising steps (NFE) the search may run"),
    Column("name", String(20), nullable=False),
    Column("stage", String(20), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("moves", Text, nullable=False, comment="of its noise on its sphere: JSON, each [t, the direction's seed]"),
    Column("parent", String(20), comment="the name of the candidate that it varies"),
    Column("strength", Float, nullable=False, comment="below 1: begun from its parent, re-noised to that strength"),
    Column("until", Integer, nullable=False, comment="the step of its path that this picture was predicted at"),
    Column("path", Integer, nullable=False, comment="its steps from noise to picture"),
    Column("nfe", Integer, nullable=False, comment="denoising steps run for this row, by the editor's own count"),
    Column("image_path", Text, comment="relative to FLEXY_IMAGES; NULL where it could not be made"),
    Column("image_sha256", String(64)),
    Column("latents", sa.LargeBinary, comment="of a preview, for as long as it may be carried on: NumPy's format"),
    Column("error", Text, comment="why it could not be made"),
    Column("elapsed_ms", Integer, comment="wall time of the editor's call, divided by the candidates in it"),
    Column("images_in_call", Integer),
    Column("scored_ms", Integer, comment="the same of its selecting metrics"),
    Column("created_at", TIMESTAMP, nullable=False),
    sa.UniqueConstraint("task", "method", "budget", "name", "until"),
)
"""A row a candidate and step that was looked at; its scores are in `image_scores`, by its id."""

edit_selections = Table(
    "edit_selections",
    metadata,
    Column("task", Uuid, ForeignKey("edit_tasks.id"), primary_key=True),
    Column("method", String(20), primary_key=True),
    Column("budget", Integer, primary_key=True),
    Column("candidate", Uuid, ForeignKey("edit_candidates.id"), nullable=False),
    Column("selected_at", TIMESTAMP, nullable=False),
)

label_pictures = Table(
    "label_pictures",
    metadata,
    Column("address_sha256", String(64), primary_key=True, comment="of the address without what signs it"),
    Column("path", Text, nullable=False, comment="relative to FLEXY_IMAGES"),
    Column("sha256", String(64), nullable=False),
    Column("fetched_at", TIMESTAMP, nullable=False),
)
"""Downloaded images. A URL may be as good as a password, so only its hash is stored."""

label_tasks = Table(
    "label_tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("batch", String(50), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("name", Text, nullable=False, comment="data.id, by which people name the task"),
    Column("project", BigInteger),
    Column("label_studio_id", BigInteger, comment="the task's number on its server"),
    Column("character_id", Text, nullable=False),
    Column("character_name", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("image_path", Text, comment="the scene; paths are relative to FLEXY_IMAGES"),
    Column("image_sha256", String(64)),
    Column("mask_path", Text, comment="8 bits, of the scene's size: white where it may change"),
    Column("mask_sha256", String(64)),
    Column("character_path", Text),
    Column("character_sha256", String(64)),
    Column("final_path", Text, comment="what people judged, where it was given"),
    Column("final_sha256", String(64)),
    Column("verdicts", Text, nullable=False, comment="JSON: a list of annotation, choices, at, by"),
    Column("digest", String(64), nullable=False, comment="of all that the task asks for"),
    Column("error", Text, comment="why it cannot be worked on; NULL where it can"),
    Column("created_at", TIMESTAMP, nullable=False),
    Column("updated_at", TIMESTAMP, nullable=False),
)

face_swaps = Table(
    "face_swaps",
    metadata,
    Column("task", Uuid, ForeignKey("label_tasks.id"), primary_key=True),
    Column("digest", String(64), primary_key=True, comment="of the task as it was then"),
    Column("outcome", String(50), nullable=False, comment="swapped, no face in the scene, …"),
    Column("reason", Text),
    Column("faces", Integer, comment="how many the scene has"),
    Column("at_edge", sa.Boolean, comment="whether the face that was meant touches the scene's edge"),
    Column("box", Text, comment="of that face: JSON, left, top, right and bottom in pixels"),
    Column("identity_before", Float, comment="cosine of its embedding and the character's"),
    Column("identity_after", Float),
    Column("image_path", Text, comment="relative to FLEXY_IMAGES"),
    Column("image_sha256", String(64)),
    Column("model", Text, comment="what swapped it: model and weights' hash"),
    Column("elapsed_ms", Integer),
    Column("created_at", TIMESTAMP, nullable=False),
)

label_predictions = Table(
    "label_predictions",
    metadata,
    Column("task", Uuid, ForeignKey("label_tasks.id"), primary_key=True),
    Column("model_version", String(200), primary_key=True),
    Column("candidate", Uuid, ForeignKey("edit_candidates.id"), nullable=False),
    Column("score", Float, comment="0-1, as it was sent"),
    Column("result", Text, comment="the regions that were sent, as JSON"),
    Column("digest", String(64), comment="of all that was sent"),
    Column("prediction_id", BigInteger, comment="the server's"),
    Column("outcome", String(20), comment="what the server made of it: created, replaced, unchanged"),
    Column("error", Text, comment="why it could not be sent; NULL once it was"),
    Column("sent_at", TIMESTAMP, comment="when the server took what it holds now"),
)
