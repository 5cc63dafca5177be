"""The read model `order_views`: orders, as they are listed and shown."""

from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    DateTime,
    Index,
    Integer,
    Numeric,
    String,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.orders.domain import OrderItem, OrderStatus
from app.orders.events import OrderStateEvent
from app.orders.models import OrderItemRow, OrderRow
from app.platform.database.engine import Base, table_of
from app.platform.database.upserts import Row
from app.platform.projections.projection import Projection, write_rows


class OrderViewRow(Base):
    """An order as it is shown, in one row."""

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


class OrderState(NamedTuple):
    """The state of an order since `updated_at`, when it reached `version`."""

    id: int
    version: int
    user_id: int
    status: OrderStatus
    items: tuple[OrderItem, ...]
    total: Decimal
    placed_at: datetime | None
    updated_at: datetime

    @classmethod
    def from_event(cls, event: OrderStateEvent) -> "OrderState":
        items = tuple(OrderItem(line.sku, line.quantity, line.unit_price) for line in event.items)
        return cls(
            event.order_id,
            event.order_version,
            event.user_id,
            OrderStatus(event.status),
            items,
            event.total,
            event.placed_at,
            event.timestamp,
        )


_ORDERS = table_of(OrderRow)
_ITEMS = table_of(OrderItemRow)
_AFTER = (
    select(
        *(_ORDERS.c.id, _ORDERS.c.version, _ORDERS.c.user_id, _ORDERS.c.status),
        *(_ORDERS.c.total, _ORDERS.c.created_at, _ORDERS.c.updated_at),
    )
    .where(_ORDERS.c.id > bindparam("after"))
    .order_by(_ORDERS.c.id)
)
_ITEMS_BETWEEN = (
    select(_ITEMS.c.order_id, _ITEMS.c.sku, _ITEMS.c.quantity, _ITEMS.c.unit_price)
    .where(_ITEMS.c.order_id.between(bindparam("first"), bindparam("last")))
    .order_by(_ITEMS.c.order_id, _ITEMS.c.position)
)


class OrderRows:
    """The states of orders in the tables that SqlOrderRepository writes, for rebuilds."""

    async def count(self, session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(_ORDERS)) or 0

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[OrderState]:
        orders = (await session.execute(_AFTER.limit(limit), {"after": id})).all()
        if not orders:
            return []
        ids = {"first": orders[0].id, "last": orders[-1].id}
        items: dict[int, list[OrderItem]] = defaultdict(list)
        for order_id, *item in await session.execute(_ITEMS_BETWEEN, ids):
            items[order_id].append(OrderItem(*item))
        return [
            OrderState(
                id,
                version,
                user_id,
                OrderStatus(status),
                tuple(items[id]),
                total,
                created_at,
                updated_at,
            )
            for id, version, user_id, status, total, created_at, updated_at in orders
        ]


ORDER_ROWS = OrderRows()


def _row(state: OrderState) -> Row:
    return {
        "order_id": state.id,
        "user_id": state.user_id,
        "status": state.status,
        "items": [
            {"sku": item.sku, "quantity": item.quantity, "unit_price": str(item.unit_price)}
            for item in state.items
        ],
        "item_count": sum(item.quantity for item in state.items),
        "total": state.total,
        "version": state.version,
        "placed_at": state.placed_at,
        "updated_at": state.updated_at,
    }


ORDER_VIEWS = Projection("order-views", [OrderViewRow], write_rows(_row, version="version"))
