"""The tables of orders and of the inventory."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    Sequence,
    String,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.platform.database.engine import Base


class InventoryLevel(Base):
    """The reserved pieces of a SKU, counted by the consumer of order.created."""

    __tablename__ = "inventory"

    sku: Mapped[str] = mapped_column(String(64), primary_key=True)
    reserved: Mapped[int] = mapped_column(BigInteger)


# An order has an id before it has a row: the id is part of its first event.
order_ids = Sequence("order_ids", metadata=Base.metadata)


class OrderRow(Base):
    """The present state of an order."""

    __tablename__ = "orders"
    # For pages of orders by id, filtered by either column.
    __table_args__ = (
        Index(None, "user_id", "id"),
        Index(None, "status", "id"),
        CheckConstraint("version >= 1", name="version"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    status: Mapped[str] = mapped_column(String(20))
    total: Mapped[Decimal] = mapped_column(Numeric(22, 2))
    version: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    items: Mapped[list["OrderItemRow"]] = relationship(
        order_by="OrderItemRow.position", lazy="raise"
    )


class OrderItemRow(Base):
    """An item of an order, at its position in the request."""

    __tablename__ = "order_items"

    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    sku: Mapped[str] = mapped_column(String(64))
    quantity: Mapped[int] = mapped_column(Integer)
    unit_price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
