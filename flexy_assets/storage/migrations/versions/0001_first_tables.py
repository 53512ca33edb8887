"""The first tables; a `bench_runs` or `bench_run_results` that exists keeps all it has and gains what it lacks."""

import sqlalchemy as sa
from alembic import context, op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _have(
        "bench_runs",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("engine", sa.String(50)),
        sa.Column("target", sa.Integer),
        sa.Column("plan", sa.Text),
        sa.Column("created_at", sa.TIMESTAMP),
    )
    _have(
        "bench_run_results",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("run_id", sa.Uuid, sa.ForeignKey("bench_runs.id")),
        sa.Column("engine", sa.String(50)),
        sa.Column("steps", sa.Integer),
        sa.Column("guidance", sa.Float),
        sa.Column("seed", sa.Integer),
        sa.Column("elapsed_ms", sa.Integer),
        sa.Column("image_path", sa.Text),
        *(sa.Column(name, sa.Float) for name in ("clip_score", "aesthetic_score", "aes_v2_score", "hps_v2_score")),
        sa.Column("created_at", sa.TIMESTAMP),
        sa.Column("prompt", sa.Text),
        sa.Column("negative_prompt", sa.Text),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("batch", sa.String(50)),
        sa.Column("images_in_call", sa.Integer),
        sa.Column("image_sha256", sa.String(64)),
    )
    for name in ("batch", "run_id"):
        op.create_index(f"ix_bench_run_results_{name}", "bench_run_results", [name], if_not_exists=True)
    op.create_table(
        "image_scores",
        sa.Column("image_id", sa.Uuid, primary_key=True),
        sa.Column("metric", sa.String(50), primary_key=True),
        sa.Column("value", sa.Float),
        sa.Column("error", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("scorer", sa.Text, nullable=False),
        sa.Column("scored_at", sa.TIMESTAMP, nullable=False),
    )
    for table, key in (("image", sa.Column("image_id", sa.Uuid)), ("text", sa.Column("prompt_sha256", sa.String(64)))):
        op.create_table(
            f"{table}_embeddings",
            key,
            sa.Column("encoder", sa.String(200)),
            sa.Column("vector", sa.LargeBinary, nullable=False),
            sa.PrimaryKeyConstraint(key.name, "encoder"),
        )


def _have(table: str, *columns: sa.Column) -> None:
    """Create the table, or add the columns it lacks."""
    # The connection that looks: `op`'s own only writes where statements are shown instead of run.
    inspector = sa.inspect(context.config.attributes["connection"])
    if not inspector.has_table(table):
        op.create_table(table, *columns)
        return
    existing = {column["name"] for column in inspector.get_columns(table)}
    for column in columns:
        if column.name not in existing:
            op.add_column(table, sa.Column(column.name, column.type))
