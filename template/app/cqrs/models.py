"""The tables of the read models. Only projectors and rebuilds write them.

There are no foreign keys: what a row refers to may come later than the row, or from a database
that is not this one.
"""

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import BigInteger, Date, DateTime, Index, Integer, Numeric, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class OrderViewRow(Base):
    """An order as it is shown: one row, whatever the write side would have to join."""

    __tablename__ = "order_views"
    # For pages by id, filtered by either column.
    __table_args__ = (Index(None, "user_id", "order_id"), Index(None, "status", "order_id"))

    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(20))
    items: Mapped[list[dict[str, str | int]]] = mapped_column(JSONB)
    item_count: Mapped[int] = mapped_column(BigInteger)
    total: Mapped[Decimal] = mapped_column(Numeric(22, 2))
    version: Mapped[int] = mapped_column(Integer)
    placed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class CustomerNameRow(Base):
    """What a user is called.

    An order and its customer come on two streams, and either may be first. So neither writes into
    the other's row: names have a table of their own, and are joined when a view is read. Whatever
    the interleaving, both rows are there in the end, and until then the name is null.
    """

    __tablename__ = "customer_names"
    __table_args__ = (Index(None, "username"),)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    username: Mapped[str] = mapped_column(String(50))


class SaleRow(Base):
    """What one order adds to the daily totals, in its newest version.

    `day` is null for an order that adds nothing. The totals are always the sum of these rows, so
    an event that comes twice or late takes back what the order added before.
    """

    __tablename__ = "sales"

    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(Integer)
    day: Mapped[date | None] = mapped_column(Date)
    amount: Mapped[Decimal] = mapped_column(Numeric(22, 2))


class DailySalesRow(Base):
    """What was paid on a day (UTC)."""

    __tablename__ = "daily_sales"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    orders: Mapped[int] = mapped_column(BigInteger)
    revenue: Mapped[Decimal] = mapped_column(Numeric(38, 2))
