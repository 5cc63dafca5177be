"""Heartbeats, and their counts."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "heartbeats_0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = ("heartbeats",)
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "heartbeats",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column(
            "sent_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name="pk_heartbeats"),
    )
    op.create_table(
        "heartbeat_counts",
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("heartbeats", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("source", name="pk_heartbeat_counts"),
    )


def downgrade() -> None:
    op.drop_table("heartbeat_counts")
    op.drop_table("heartbeats")
