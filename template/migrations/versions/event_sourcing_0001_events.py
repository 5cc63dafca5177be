"""The event store, and the snapshots of its streams."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "event_sourcing_0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = ("event_sourcing",)
depends_on: str | Sequence[str] | None = None

# Events stay as they are. Who has to erase a stream says so, for one transaction:
# SET LOCAL event_store.erasing = 'on' (docs/event_sourcing.md).
GUARD = """
CREATE FUNCTION events_stay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('event_store.erasing', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'events are never changed: append one that corrects them'
        USING ERRCODE = 'restrict_violation';
END $$
"""
TRIGGER = (
    "CREATE TRIGGER events_stay BEFORE UPDATE OR DELETE ON events"
    " FOR EACH ROW EXECUTE FUNCTION events_stay()"
)


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("category", sa.String(50), nullable=False),
        sa.Column("stream_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("data_version", sa.Integer, nullable=False),
        sa.Column("data", JSONB, nullable=False),
        sa.Column("metadata", JSONB, nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.clock_timestamp(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("category", "stream_id", "version", name="pk_events"),
        sa.UniqueConstraint("position", name="uq_events_position"),
        sa.UniqueConstraint("event_id", name="uq_events_event_id"),
        sa.CheckConstraint("version >= 1", name="ck_events_version"),
    )
    op.execute(GUARD)
    op.execute(TRIGGER)
    op.create_table(
        "event_snapshots",
        sa.Column("category", sa.String(50), nullable=False),
        sa.Column("stream_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state_version", sa.Integer, nullable=False),
        sa.Column("state", JSONB, nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("category", "stream_id", name="pk_event_snapshots"),
    )


def downgrade() -> None:
    op.drop_table("event_snapshots")
    op.drop_table("events")
    op.execute("DROP FUNCTION events_stay")
