"""On what an image was made: FlexyFace's columns, and the version of transformers."""

from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0008"
down_revision = "0007"

COLUMNS: dict[str, Any] = {
    "tf32_enabled": sa.Boolean,
    "gpu_name": sa.String(100),
    "gpu_mem_peak_mb": sa.Integer,
    "model_load_ms": sa.Integer,
    **{f"{library}_version": sa.String(50) for library in ("torch", "diffusers", "transformers")},
}


def upgrade() -> None:
    columns = sa.inspect(context.config.attributes["connection"]).get_columns("bench_run_results")
    existing = {column["name"] for column in columns}
    for name, kind in COLUMNS.items():
        if name not in existing:
            op.add_column("bench_run_results", sa.Column(name, kind))
