"""Score makers: what computed the scores that were in a column before Flexy."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "score_makers",
        sa.Column("metric", sa.String(50), primary_key=True),
        sa.Column("scorer", sa.String(200), primary_key=True),
        sa.Column("variant", sa.Text),
        sa.Column("sampled", sa.Integer, nullable=False),
        sa.Column("agreeing", sa.Integer, nullable=False),
        sa.Column("mean_difference", sa.Float),
        sa.Column("spread", sa.Float),
        sa.Column("correlation", sa.Float),
        sa.Column("tried", sa.Text, nullable=False),
        sa.Column("sample", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("compared_at", sa.TIMESTAMP, nullable=False),
    )
