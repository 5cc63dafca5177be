"""The read model `order_views`: orders as they are listed and shown, and what they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import cast

from sqlalchemy import (
    BigInteger,
    DateTime,
    Index,
    Integer,
    Numeric,
    String,
    Table,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, selectinload

from app.orders.domain import OrderItem, OrderStatus
from app.orders.events import OrderStateEvent
from app.orders.models import OrderRow
from app.orders.repository import order_items
from app.platform.database.engine import Base
from app.platform.projections.projection import Projection, newest


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


@dataclass(frozen=True)
class OrderState:
    """An order as it was when it had come to `version`, at `updated_at`."""

    id: int
    version: int
    user_id: int
    status: OrderStatus
    items: tuple[OrderItem, ...]
    total: Decimal
    placed_at: datetime | None
    updated_at: datetime

    @classmethod
    def of(cls, event: OrderStateEvent) -> "OrderState":
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


class OrderTables:
    """Orders, as SqlOrderRepository keeps them."""

    async def count(self, session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(OrderRow)) or 0

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[OrderState]:
        query = (
            select(OrderRow)
            .where(OrderRow.id > id)
            .order_by(OrderRow.id)
            .limit(limit)
            .options(selectinload(OrderRow.items))
        )
        return [_state(row) for row in await session.scalars(query)]


def _state(row: OrderRow) -> OrderState:
    return OrderState(
        row.id,
        row.version,
        row.user_id,
        OrderStatus(row.status),
        order_items(row),
        row.total,
        row.created_at,
        row.updated_at,
    )


async def write(
    session: AsyncSession, tables: Sequence[Table], states: Sequence[OrderState]
) -> None:
    (views,) = tables
    new = insert(views)
    upsert = new.on_conflict_do_update(
        index_elements=[views.c.order_id],
        set_={column.name: new.excluded[column.name] for column in views.c},
        # Events of one order are on several topics and come in any order: the newest one wins.
        where=new.excluded.version > views.c.version,
    )
    await session.execute(upsert, [_row(state) for state in newest(states)])


def _row(state: OrderState) -> dict[str, object]:
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


ORDER_VIEWS = Projection("order-views", [cast(Table, OrderViewRow.__table__)], write)
