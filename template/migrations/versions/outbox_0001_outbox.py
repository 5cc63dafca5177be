"""The transactional outbox."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "outbox_0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = ("outbox",)
depends_on: str | Sequence[str] | None = None

# Rows live for milliseconds, so the tables are all dead rows unless these are cleared away early
# and without pauses. What share of a table is dead says nothing about a table that is mostly empty.
VACUUM = {
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 5000,
    "autovacuum_vacuum_insert_scale_factor": 0,
    "autovacuum_vacuum_insert_threshold": 50000,
    "autovacuum_analyze_scale_factor": 0,
    "autovacuum_analyze_threshold": 50000,
    "autovacuum_vacuum_cost_delay": 0,
}


def _message() -> list[sa.Column[object]]:
    return [
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("ce_id", sa.Text),
        sa.Column("ce_type", sa.Text),
        sa.Column("ce_source", sa.Text),
        sa.Column("ce_time", sa.Text),
        sa.Column("correlation_id", sa.Text),
        sa.Column("causation_id", sa.Text),
        sa.Column("traceparent", sa.Text),
        sa.Column("headers", JSONB, server_default="{}", nullable=False),
        sa.Column("attempts", sa.Integer, server_default="0", nullable=False),
        _now("created_at"),
    ]


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def upgrade() -> None:
    op.create_table(
        "outbox",
        # The sequence must not be cached by sessions: a key's ids would no longer ascend.
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        *_message(),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_bucket_id", "outbox", ["bucket", "id"])
    op.create_table(
        "outbox_parked",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        _now("parked_at"),
        *_message(),
        sa.PrimaryKeyConstraint("id", name="pk_outbox_parked"),
    )
    # A B-tree takes keys of up to 2,700 bytes, and parking one that is longer would fail.
    op.create_index("ix_outbox_parked_key", "outbox_parked", ["key"], postgresql_using="hash")
    op.create_table(
        "outbox_buckets",  # relays add the rows, as many as OUTBOX_BUCKETS says
        sa.Column("bucket", sa.Integer, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("bucket", name="pk_outbox_buckets"),
    )
    settings = ", ".join(f"{name} = {value}" for name, value in VACUUM.items())
    op.execute(f"ALTER TABLE outbox SET ({settings})")


def downgrade() -> None:
    for table in ("outbox_buckets", "outbox_parked", "outbox"):
        op.drop_table(table)
