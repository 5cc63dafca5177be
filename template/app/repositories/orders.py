"""Where orders are kept. `OrderRepository` is the seam: an event store can take its place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from app.domain.orders import Order, OrderEvent, OrderItem, OrderStatus
from app.errors import VersionConflict
from app.models import OrderItemRow, OrderRow, order_ids
from app.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class OrderTimes:
    """When an order was placed, and when it was last changed, as the write side has it."""

    placed_at: datetime
    changed_at: datetime


class OrderRepository(Protocol):
    """Loads and saves orders within the unit of work's transaction."""

    async def next_id(self) -> int:
        """An id that no order has or will get."""

    async def get(self, order_id: int) -> Order | None: ...

    async def save(
        self, order: Order, events: Sequence[OrderEvent], expected_version: int
    ) -> OrderTimes:
        """Store `order`, which `events` brought from `expected_version` (0: it is new) to its own.

        Raises VersionConflict when the stored version is another one.
        """


BindOrders = Callable[[UnitOfWork], OrderRepository]

_TIMES = (OrderRow.created_at, OrderRow.updated_at)


class SqlOrderRepository:
    """Keeps the present state in `orders` and `order_items`."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._session: AsyncSession = uow.session

    async def next_id(self) -> int:
        return int(await self._session.scalar(select(order_ids.next_value())) or 0)

    async def get(self, order_id: int) -> Order | None:
        query = select(OrderRow).where(OrderRow.id == order_id).options(joinedload(OrderRow.items))
        row = (await self._session.scalars(query)).unique().one_or_none()
        return None if row is None else _order(row)

    async def save(
        self, order: Order, events: Sequence[OrderEvent], expected_version: int
    ) -> OrderTimes:
        if expected_version == 0:
            return await self._insert(order)
        return await self._update(order, expected_version)

    async def _insert(self, order: Order) -> OrderTimes:
        statement = upsert(OrderRow).values(
            id=order.id,
            user_id=order.user_id,
            status=order.status,
            total=order.total,
            version=order.version,
        )
        new = statement.on_conflict_do_nothing().returning(*_TIMES)
        row = (await self._session.execute(new)).one_or_none()
        if row is None:
            raise VersionConflict("order", order.id)
        await self._session.execute(
            insert(OrderItemRow),
            [
                {
                    "order_id": order.id,
                    "position": position,
                    "sku": item.sku,
                    "quantity": item.quantity,
                    "unit_price": item.unit_price,
                }
                for position, item in enumerate(order.items)
            ],
        )
        return OrderTimes(*row)

    async def _update(self, order: Order, expected_version: int) -> OrderTimes:
        # The items stay as they were placed: no event changes them.
        changed = (
            update(OrderRow)
            .where(OrderRow.id == order.id, OrderRow.version == expected_version)
            .values(status=order.status, version=order.version, updated_at=func.now())
            .returning(*_TIMES)
            .execution_options(synchronize_session=False)
        )
        row = (await self._session.execute(changed)).one_or_none()
        if row is None:
            raise VersionConflict("order", order.id)
        return OrderTimes(*row)


def _order(row: OrderRow) -> Order:
    return Order(row.id, row.user_id, order_items(row), OrderStatus(row.status), row.version)


def order_items(row: OrderRow) -> tuple[OrderItem, ...]:
    return tuple(OrderItem(item.sku, item.quantity, item.unit_price) for item in row.items)
