"""The groups of a prompt, and the weights that made an image."""

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    columns = sa.inspect(context.config.attributes["connection"]).get_columns("bench_run_results")
    existing = {column["name"] for column in columns}
    for name, length in (("category", 100), ("complexity", 100), ("weights", 200)):
        if name not in existing:
            op.add_column("bench_run_results", sa.Column(name, sa.String(length)))
