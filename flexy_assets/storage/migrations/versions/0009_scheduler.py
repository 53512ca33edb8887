"""The scheduler of an image, where its sweep names one."""

import sqlalchemy as sa
from alembic import context, op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    columns = sa.inspect(context.config.attributes["connection"]).get_columns("bench_run_results")
    if "scheduler" not in {column["name"] for column in columns}:
        op.add_column("bench_run_results", sa.Column("scheduler", sa.String(50)))
