"""The read models, and the rebuilds that are under way."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "cqrs_0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = ("cqrs",)
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "order_views",
        sa.Column("order_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("items", JSONB, nullable=False),
        sa.Column("item_count", sa.BigInteger, nullable=False),
        sa.Column("total", sa.Numeric(22, 2), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="pk_order_views"),
    )
    op.create_index("ix_order_views_user_id_order_id", "order_views", ["user_id", "order_id"])
    op.create_index("ix_order_views_status_order_id", "order_views", ["status", "order_id"])
    op.create_table(
        "customer_names",
        sa.Column("user_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("username", sa.String(50), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_customer_names"),
    )
    op.create_index("ix_customer_names_username", "customer_names", ["username"])
    op.create_table(
        "sales",
        sa.Column("order_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("day", sa.Date),
        sa.Column("amount", sa.Numeric(22, 2), nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="pk_sales"),
    )
    op.create_table(
        "daily_sales",
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("orders", sa.BigInteger, nullable=False),
        sa.Column("revenue", sa.Numeric(38, 2), nullable=False),
        sa.PrimaryKeyConstraint("day", name="pk_daily_sales"),
    )
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
    for table in ("order_views", "customer_names", "sales", "daily_sales"):
        op.execute(f"DROP TABLE IF EXISTS {table}_shadow")  # of a rebuild that was interrupted
        op.drop_table(table)
    op.drop_table("projection_rebuilds")
