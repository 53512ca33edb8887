"""How sure a recovered prompt is."""

import sqlalchemy as sa
from alembic import context, op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    columns = sa.inspect(context.config.attributes["connection"]).get_columns("bench_run_results")
    if "prompt_confidence" not in {column["name"] for column in columns}:
        op.add_column("bench_run_results", sa.Column("prompt_confidence", sa.Float))
