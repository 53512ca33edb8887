"""Indexes for what is missing, and nothing that ties somebody else's table to ours."""

from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision = "0001"

UNSCORED = "clip_score IS NULL OR aesthetic_score IS NULL OR aes_v2_score IS NULL OR hps_v2_score IS NULL"
UNSETTLED = "value IS NULL OR rescore IS NOT NULL"


def upgrade() -> None:
    connection = context.config.attributes["connection"]
    if connection.dialect.name == "postgresql":  # SQLite's are its file's own, and cannot be dropped by name
        for table in ("image_scores", "image_embeddings"):
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_image_id_fkey")
    op.add_column("image_scores", sa.Column("rescore", sa.TIMESTAMP))
    scores = ("clip_score", "aesthetic_score", "aes_v2_score", "hps_v2_score")
    _index("bench_run_results", "unscored", ("batch", "engine", *scores), UNSCORED)
    _index("bench_run_results", "unbatched", ("run_id", "created_at", "id"), "batch IS NULL")
    _index("image_scores", "unsettled", ("metric", "image_id"), UNSETTLED)


def _index(table: str, name: str, columns: tuple[str, ...], where: str) -> None:
    partial: Any = dict.fromkeys(("postgresql_where", "sqlite_where"), sa.text(where))
    op.create_index(f"ix_{table}_{name}", table, list(columns), if_not_exists=True, **partial)
