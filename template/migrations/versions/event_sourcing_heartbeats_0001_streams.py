"""The number of the stream of each source of heartbeats."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "event_sourcing_heartbeats_0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = ("event_sourcing_heartbeats",)
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "source_streams",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_source_streams"),
        sa.UniqueConstraint("source", name="uq_source_streams_source"),
    )


def downgrade() -> None:
    op.drop_table("source_streams")
