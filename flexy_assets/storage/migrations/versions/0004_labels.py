"""Labels: the tasks of a Label Studio project, their swapped faces, and what was sent back."""

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "label_pictures",
        sa.Column("address_sha256", sa.String(64), primary_key=True),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("fetched_at", sa.TIMESTAMP, nullable=False),
    )
    kinds = (("path", sa.Text), ("sha256", sa.String(64)))
    names = ("image", "mask", "character", "final")
    pictures = [sa.Column(f"{name}_{suffix}", kind) for name in names for suffix, kind in kinds]
    op.create_table(
        "label_tasks",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("batch", sa.String(50), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("project", sa.BigInteger),
        sa.Column("label_studio_id", sa.BigInteger),
        sa.Column("character_id", sa.Text, nullable=False),
        sa.Column("character_name", sa.Text, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        *pictures,
        sa.Column("verdicts", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("created_at", sa.TIMESTAMP, nullable=False),
        sa.Column("updated_at", sa.TIMESTAMP, nullable=False),
    )
    op.create_index("ix_label_tasks_batch", "label_tasks", ["batch"])
    op.create_table(
        "face_swaps",
        sa.Column("task", sa.Uuid, sa.ForeignKey("label_tasks.id"), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("outcome", sa.String(50), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("faces", sa.Integer),
        sa.Column("at_edge", sa.Boolean),
        sa.Column("box", sa.Text),
        sa.Column("identity_before", sa.Float),
        sa.Column("identity_after", sa.Float),
        sa.Column("image_path", sa.Text),
        sa.Column("image_sha256", sa.String(64)),
        sa.Column("model", sa.Text),
        sa.Column("elapsed_ms", sa.Integer),
        sa.Column("created_at", sa.TIMESTAMP, nullable=False),
    )
    for name in ("mask_path", "mask_sha256", "reference_path", "reference_sha256", "label_digest"):
        op.add_column("edit_tasks", sa.Column(name, sa.Text if name.endswith("_path") else sa.String(64)))
    _refer("edit_tasks", "label_task", "label_tasks")
    op.create_index("ix_edit_tasks_label_task", "edit_tasks", ["label_task"])
    op.create_table(
        "label_predictions",
        sa.Column("task", sa.Uuid, sa.ForeignKey("label_tasks.id"), primary_key=True),
        sa.Column("model_version", sa.String(200), primary_key=True),
        sa.Column("candidate", sa.Uuid, sa.ForeignKey("edit_candidates.id"), nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("result", sa.Text),
        sa.Column("digest", sa.String(64)),
        sa.Column("prediction_id", sa.BigInteger),
        sa.Column("outcome", sa.String(20)),
        sa.Column("error", sa.Text),
        sa.Column("sent_at", sa.TIMESTAMP),
    )


def _refer(table: str, column: str, to: str) -> None:
    """Add a column that refers to another table's id."""
    if context.config.attributes["connection"].dialect.name == "sqlite":
        # Alembic would have it as a constraint of its own, which SQLite adds to no table that is there.
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column} CHAR(32) REFERENCES {to} (id)")
    else:
        op.add_column(table, sa.Column(column, sa.Uuid, sa.ForeignKey(f"{to}.id")))
