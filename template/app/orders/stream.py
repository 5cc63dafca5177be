"""Orders as streams of events: which events there are, and the repository that keeps them."""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import assert_never

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
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
from app.orders.models import OrderRow, order_ids
from app.orders.repository import (
    BindOrderQueries,
    BindOrders,
    DuplicateCommand,
    OrderFilter,
    OrderTimes,
    OrderView,
    order_items,
)
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.errors import VersionConflict
from app.platform.event_store.category import Category, Data, EventType
from app.platform.event_store.causation import event_id, new_events
from app.platform.event_store.model import EventRow
from app.platform.event_store.store import (
    NO_STREAM,
    EventStore,
    ImportRefused,
    NewEvent,
    StreamState,
)
from app.platform.http.idempotency import IdempotencyKeyReused


def order_placed_2(data: Data) -> Data:
    """Version 1 had prices in cents, as integers. They are decimal numbers in strings since."""
    items = [
        {
            "sku": item["sku"],
            "quantity": item["quantity"],
            "unit_price": str(Decimal(item["price_cents"]).scaleb(-2)),
        }
        for item in data["items"]
    ]
    return {**data, "items": items}


# The names and versions are stored for ever: a class may be renamed, a name may not.
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

Project = Callable[[AsyncSession, Sequence[StreamState[Order]]], Awaitable[None]]


class EventSourcedOrders:
    """Keeps orders as their events. `project` writes the read table in the same transaction."""

    def __init__(self, uow: UnitOfWork, project: Project | None = None) -> None:
        self._session = uow.session
        self._store = EventStore(uow.session, ORDERS)
        self._project = project
        self._placed = 0

    async def next_id(self) -> int:
        return int(await self._session.scalar(select(order_ids.next_value())) or 0)

    async def get(self, order_id: int) -> Order | None:
        loaded = await self._store.load(order_id)
        return None if loaded is None else loaded.state

    async def save(
        self, order: Order, events: Sequence[OrderEvent], expected_version: int
    ) -> OrderTimes:
        new = self._with_ids(order.id, events, expected_version)
        try:
            appended = await self._store.append(order.id, new, expected_version)
        except VersionConflict:
            earlier = await self._find_previous_result(new)
            if earlier is None:
                raise
            # Paying and cancelling have no content: their ids tell of the order and of what is done.
            if (earlier.user_id, earlier.items) != (order.user_id, order.items):
                raise IdempotencyKeyReused from None
            raise DuplicateCommand(earlier) from None
        loaded = StreamState(order, order.version, appended.began_at, appended.recorded_at)
        if ORDERS.snapshot_is_due(expected_version, order.version):
            await self._store.save_snapshot(order.id, loaded)
        if self._project is not None:
            await self._project(self._session, [loaded])
        return OrderTimes(loaded.began_at, loaded.changed_at)

    def _with_ids(
        self, order_id: int, events: Sequence[OrderEvent], expected_version: int
    ) -> list[NewEvent[OrderEvent]]:
        subject = str(order_id)
        if expected_version == NO_STREAM:  # repeated, it would have another id
            self._placed += 1
            subject = f"new-{self._placed}"
        return new_events(ORDERS, subject, events)

    async def _find_previous_result(self, new: Sequence[NewEvent[OrderEvent]]) -> Order | None:
        """Return the result of the command when it came first; None when it never did."""
        found = await self._store.find(new[-1].event_id)
        if found is None:
            return None
        loaded = await self._store.load(*found)
        return None if loaded is None else loaded.state


def stored(project: Project | None = None) -> BindOrders:
    """Orders in the event store, for each unit of work."""
    return lambda uow: EventSourcedOrders(uow, project)


_Sessions = async_sessionmaker[AsyncSession]
_PAGE = 500


class OrderStreams:
    """Orders as `app event-store` needs them. `repair` writes the rows of one anew."""

    category = ORDERS
    compared = ("user_id", "items", "total", "status", "version")

    def __init__(
        self,
        queries: BindOrderQueries,
        repair: Callable[[AsyncSession, StreamState[Order]], Awaitable[None]] | None = None,
    ) -> None:
        self._queries = queries
        self.repair = repair

    def summary(self, order: Order) -> str:
        return order.status

    async def view(self, sessions: _Sessions, order_id: int) -> OrderView | None:
        return await self._queries(sessions).get(order_id)

    async def views(
        self, sessions: _Sessions, above: int, up_to: int | None
    ) -> dict[int, OrderView]:
        queries, before = self._queries(sessions), up_to and up_to + 1
        found: dict[int, OrderView] = {}
        while True:
            page = await queries.page(OrderFilter(), before, _PAGE)
            found |= {view.id: view for view in page if view.id > above}
            if len(page) < _PAGE or page[-1].id <= above:
                return found
            before = page[-1].id

    async def import_rows(self, session: AsyncSession, limit: int) -> int:
        return await import_orders(session, limit)


async def import_orders(session: AsyncSession, limit: int) -> int:
    """Give up to `limit` orders that are rows only the events that led to them; how many.

    For a service whose orders are older than its event store. Nothing is published: others know.
    Raises ImportRefused.
    """
    has_stream = exists().where(EventRow.category == ORDERS.name, EventRow.stream_id == OrderRow.id)
    query = select(OrderRow).where(~has_stream).order_by(OrderRow.id).limit(limit)
    rows = (await session.scalars(query.options(selectinload(OrderRow.items)))).all()
    store = EventStore(session, ORDERS)
    for row in rows:
        events = _events_behind(row)
        told = {"actor": "import"}
        new = [
            NewEvent(
                event_id(ORDERS.name, row.id, number, "import"),
                event,
                told,
                row.created_at if number == 0 else row.updated_at,
            )
            for number, event in enumerate(events)
        ]
        await store.append(row.id, new, NO_STREAM)
    return len(rows)


def _events_behind(row: OrderRow) -> list[OrderEvent]:
    """Return the events that led to the row. Raises ImportRefused where they are not known."""
    if row.status in {*OrderStatus}:
        events = _history(row, OrderStatus(row.status))
        order = fold(events)
        if order is not None and (order.status, order.version) == (row.status, row.version):
            return events
    raise ImportRefused(
        f"order {row.id} is {row.status} in version {row.version}, and no events are known that lead"
        " there: let `_history` in app/orders/stream.py return them, and import again"
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
