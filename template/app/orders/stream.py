"""Orders as streams of events, and the repository that stores them."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import assert_never

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.orders.domain import (
    Order,
    OrderCancelled,
    OrderEvent,
    OrderPaid,
    OrderPlaced,
    OrderStatus,
    evolve,
    fold,
)
from app.orders.models import OrderRow
from app.orders.repository import (
    OrderFilter,
    OrderQueriesFactory,
    OrderTimes,
    OrderView,
    next_order_id,
    order_items,
)
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.errors import DuplicateCommand, IdempotencyKeyReused
from app.platform.event_store.category import Category, Data, EventType
from app.platform.event_store.model import EventRow
from app.platform.event_store.repository import EventSourcedRepository, Project
from app.platform.event_store.store import NO_STREAM, ImportRefused
from app.platform.event_store.streams import Imported, Repair, Sessions, Streams


def order_placed_2(data: Data) -> Data:
    """Version 1 had prices as integers, in cents; version 2 has decimal numbers in strings."""
    items = [
        {
            "sku": item["sku"],
            "quantity": item["quantity"],
            "unit_price": str(Decimal(item["price_cents"]).scaleb(-2)),
        }
        for item in data["items"]
    ]
    return {**data, "items": items}


# Names and versions of events are stored for ever; classes can be renamed.
ORDERS: Category[OrderEvent, Order] = Category(
    "order",
    [
        EventType("order.placed", OrderPlaced, version=2, upcasters={1: order_placed_2}),
        EventType("order.paid", OrderPaid),
        EventType("order.cancelled", OrderCancelled),
    ],
    Order,
    evolve,
)


class EventSourcedOrders:
    """Stores orders as events. `project` writes the rows that are read, in the same transaction."""

    def __init__(self, uow: UnitOfWork, project: Project[Order] | None = None) -> None:
        self._session = uow.session
        self._orders = EventSourcedRepository(uow.session, ORDERS, project)

    async def next_id(self, user_id: int) -> int | None:
        return await next_order_id(self._session, user_id)

    async def get(self, order_id: int) -> Order | None:
        loaded = await self._orders.load(order_id)
        return None if loaded is None else loaded.state

    async def save(
        self, order: Order, events: Sequence[OrderEvent], expected_version: int
    ) -> OrderTimes:
        # A repetition of the command that placed an order has another order id.
        subject = "new" if expected_version == NO_STREAM else None
        saved = await self._orders.save(order.id, order, events, expected_version, subject)
        if saved.duplicate:
            # Paying and cancelling have no content beside the order.
            if (saved.state.user_id, saved.state.items) != (order.user_id, order.items):
                raise IdempotencyKeyReused
            raise DuplicateCommand(saved.state)
        return OrderTimes(saved.began_at, saved.changed_at)


_PAGE = 500


class OrderStreams(Streams):
    """Orders for `app event-store`. Their views are what queries return."""

    category = ORDERS
    summary = "status"
    compared = ("user_id", "items", "total", "status", "version")

    def __init__(self, queries: OrderQueriesFactory, repair: Repair | None = None) -> None:
        super().__init__(repair)
        self._queries = queries

    async def views(self, sessions: Sessions, above: int, below: int) -> dict[int, OrderView]:
        queries = self._queries(sessions)
        found: dict[int, OrderView] = {}
        while True:
            limit = min(_PAGE, below - above - 1)
            page = await queries.page(OrderFilter(), below, limit)
            found |= {view.id: view for view in page if view.id > above}
            if len(page) < limit or page[-1].id <= above + 1:
                return found
            below = page[-1].id

    async def unimported(self, session: AsyncSession, limit: int) -> list[Imported]:
        is_stream = (EventRow.category == ORDERS.name) & (EventRow.stream_id == OrderRow.id)
        query = select(OrderRow).where(~exists().where(is_stream)).order_by(OrderRow.id)
        query = query.limit(limit).options(selectinload(OrderRow.items))
        return [(row.id, _timed_history(row)) for row in await session.scalars(query)]


def _timed_history(row: OrderRow) -> list[tuple[OrderEvent, datetime]]:
    placed, *rest = _events_behind(row)
    return [(placed, row.created_at), *((event, row.updated_at) for event in rest)]


def _events_behind(row: OrderRow) -> list[OrderEvent]:
    """Return the events that led to the row. Raises ImportRefused if they are not known."""
    if row.status in {*OrderStatus}:
        events = _history(row, OrderStatus(row.status))
        order = fold(events)
        if order is not None and (order.status, order.version) == (row.status, row.version):
            return events
    raise ImportRefused(
        f"order {row.id} is {row.status} in version {row.version}, and no known events lead there:"
        " let `_history` in app/orders/stream.py return them, and import again"
    )


def _history(row: OrderRow, status: OrderStatus) -> list[OrderEvent]:
    placed = OrderPlaced(row.id, row.user_id, order_items(row))
    match status:
        case OrderStatus.PLACED:
            return [placed]
        case OrderStatus.PAID:
            return [placed, OrderPaid(row.id)]
        case OrderStatus.CANCELLED:
            return [placed, OrderCancelled(row.id)]
        case _:
            assert_never(status)
