"""Edits: comparisons, their tasks, every candidate, and what was chosen."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "edit_runs",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("created_at", sa.TIMESTAMP, nullable=False),
    )
    op.create_table(
        "edit_tasks",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("run_id", sa.Uuid, sa.ForeignKey("edit_runs.id"), nullable=False),
        sa.Column("batch", sa.String(50), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("image_path", sa.Text, nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
    )
    for column in ("run_id", "batch"):
        op.create_index(f"ix_edit_tasks_{column}", "edit_tasks", [column])
    op.create_table(
        "edit_candidates",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("task", sa.Uuid, sa.ForeignKey("edit_tasks.id"), nullable=False),
        sa.Column("method", sa.String(20), nullable=False),
        sa.Column("budget", sa.Integer, nullable=False),
        sa.Column("name", sa.String(20), nullable=False),
        sa.Column("stage", sa.String(20), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("moves", sa.Text, nullable=False),
        sa.Column("parent", sa.String(20)),
        sa.Column("strength", sa.Float, nullable=False),
        sa.Column("until", sa.Integer, nullable=False),
        sa.Column("path", sa.Integer, nullable=False),
        sa.Column("nfe", sa.Integer, nullable=False),
        sa.Column("image_path", sa.Text),
        sa.Column("image_sha256", sa.String(64)),
        sa.Column("latents", sa.LargeBinary),
        sa.Column("error", sa.Text),
        sa.Column("elapsed_ms", sa.Integer),
        sa.Column("images_in_call", sa.Integer),
        sa.Column("scored_ms", sa.Integer),
        sa.Column("created_at", sa.TIMESTAMP, nullable=False),
        sa.UniqueConstraint("task", "method", "budget", "name", "until"),
    )
    op.create_index("ix_edit_candidates_task", "edit_candidates", ["task"])
    op.create_table(
        "edit_selections",
        sa.Column("task", sa.Uuid, sa.ForeignKey("edit_tasks.id"), primary_key=True),
        sa.Column("method", sa.String(20), primary_key=True),
        sa.Column("budget", sa.Integer, primary_key=True),
        sa.Column("candidate", sa.Uuid, sa.ForeignKey("edit_candidates.id"), nullable=False),
        sa.Column("selected_at", sa.TIMESTAMP, nullable=False),
    )
