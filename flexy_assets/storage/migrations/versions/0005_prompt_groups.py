"""The groups of a prompt."""

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    columns = sa.inspect(context.config.attributes["connection"]).get_columns("bench_run_results")
    existing = {column["name"] for column in columns}
    for name in ("category", "complexity"):
        if name not in existing:
            op.add_column("bench_run_results", sa.Column(name, sa.String(100)))
