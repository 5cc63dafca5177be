"""The vendors' part of a trace's context, which travels with its events."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "outbox_0002"
down_revision: str | None = "outbox_0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLES = ("outbox", "outbox_parked")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("tracestate", sa.Text))


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "tracestate")
