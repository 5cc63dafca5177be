"""The read model of heartbeats: sources, and when each was last heard of."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "cqrs_heartbeats_0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = ("cqrs_heartbeats",)
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "sources",
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("heartbeat_id", sa.BigInteger, nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("source", name="pk_sources"),
    )
    op.create_index("ix_sources_sent_at", "sources", ["sent_at"])


def downgrade() -> None:
    op.execute("DROP TABLE IF EXISTS sources_shadow")  # of a rebuild that was interrupted
    op.drop_table("sources")
