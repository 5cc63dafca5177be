"""The rebuilds that are under way."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "cqrs_0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = ("cqrs",)
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "projection_rebuilds",
        sa.Column("projection", sa.String(100), nullable=False),
        sa.Column("token", sa.Uuid, nullable=False),
        sa.Column("position", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("done", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("expected", sa.BigInteger, nullable=False),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("projection", name="pk_projection_rebuilds"),
    )


def downgrade() -> None:
    op.drop_table("projection_rebuilds")
