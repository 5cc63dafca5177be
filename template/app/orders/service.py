"""Commands on orders: load, decide, save, publish. And reads that wait for what was written."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from pydantic import Field

from app.orders import domain as orders
from app.orders.domain import Order, OrderEvent, OrderItem, evolve
from app.orders.events import OrderCancelled, OrderCreated, OrderLine, OrderPaid, OrderStateEvent
from app.orders.repository import (
    DuplicateCommand,
    OrderFilter,
    OrderQueries,
    OrderRepository,
    OrderView,
)
from app.platform.config import EnvSettings
from app.platform.database.unit_of_work import EventPublisher
from app.platform.errors import NotFound, Unavailable, Unprocessable, VersionConflict
from app.users.repository import UserRepository

# How often a command without a version is decided when others change the order meanwhile.
DECISIONS = 5


class OrderService:
    """`expected` are the versions that the caller's decision is meant for; None is any."""

    def __init__(
        self, orders: OrderRepository, users: UserRepository, events: EventPublisher
    ) -> None:
        self._orders = orders
        self._users = users
        self._events = events

    async def place(self, user_id: int, items: Sequence[OrderItem]) -> Order:
        if not await self._users.exists(user_id):
            raise Unprocessable(f"there is no user {user_id}", pointer="/user_id")
        order_id = await self._orders.next_id()
        return await self._apply(None, orders.place(order_id, user_id, items))

    async def pay(self, order_id: int, expected: Collection[int] | None) -> Order:
        return await self._change(order_id, expected, orders.pay)

    async def cancel(self, order_id: int, expected: Collection[int] | None) -> Order:
        return await self._change(order_id, expected, orders.cancel)

    async def _change(
        self,
        order_id: int,
        expected: Collection[int] | None,
        command: Callable[[Order], list[OrderEvent]],
    ) -> Order:
        for attempt in range(1, DECISIONS + 1):
            order = await self._orders.get(order_id)
            if order is None:
                raise NotFound("order", order_id)
            if expected is not None and order.version not in expected:
                raise VersionConflict("order", order_id)
            try:
                return await self._apply(order, command(order))
            except VersionConflict:
                # Who named a version meant that one; who did not gets a decision on the new state.
                if expected is not None or attempt == DECISIONS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _apply(self, before: Order | None, events: Sequence[OrderEvent]) -> Order:
        order, history = before, []
        for event in events:
            order = evolve(order, event)
            history.append((event, order))
        if order is None:
            raise ValueError("a command that makes an order has at least one event")
        try:
            times = await self._orders.save(order, events, before.version if before else 0)
        except DuplicateCommand as repeated:
            return repeated.order  # its events went out the first time
        for event, after in history:
            await self._events.publish(
                integration_event(event, after, times.placed_at, times.changed_at)
            )
        return order


_POLL_SECONDS = 0.05


class OrderReadSettings(EnvSettings):
    """Settings of `GET /orders/{id}?min_version=`: how long it waits for the version."""

    orders_min_version_wait_seconds: float = Field(2.0, ge=0, le=60)


class VersionNotReached(Unavailable):
    title = "The version is not there yet"
    problem_type = "not-yet-there"


class OrderReads:
    def __init__(self, queries: OrderQueries, settings: OrderReadSettings) -> None:
        self._queries = queries
        self._wait = settings.orders_min_version_wait_seconds

    async def get(self, order_id: int, min_version: int | None = None) -> OrderView:
        """The order, in `min_version` or a later one. Raises NotFound and VersionNotReached."""
        if min_version is not None:
            return await self._get_from(order_id, min_version)
        order = await self._queries.get(order_id)
        if order is None:
            raise NotFound("order", order_id)
        return order

    async def page(self, wanted: OrderFilter, before: int | None, limit: int) -> list[OrderView]:
        return await self._queries.page(wanted, before, limit)

    async def _get_from(self, order_id: int, min_version: int) -> OrderView:
        # Who asks for a version has seen it, so an order that is missing is one that is late.
        deadline = asyncio.get_running_loop().time() + self._wait
        while True:
            order = await self._queries.get(order_id)
            if order is not None and order.version >= min_version:
                return order
            if asyncio.get_running_loop().time() >= deadline:
                raise VersionNotReached(
                    f"order {order_id} has not reached version {min_version} here"
                )
            await asyncio.sleep(_POLL_SECONDS)


_PUBLISHED: dict[type[OrderEvent], Callable[..., OrderStateEvent]] = {
    orders.OrderPlaced: OrderCreated,
    orders.OrderPaid: OrderPaid,
    orders.OrderCancelled: OrderCancelled,
}


def integration_event(
    event: OrderEvent, order: Order, placed_at: datetime, at: datetime
) -> OrderStateEvent:
    """Return the integration event for `event`, which led to the state `order`.

    Internal events are as small as the decision was; integration events carry the full state, so
    that readers in other services need neither our history nor a call back. The times are the write side's, so that whoever reads the events knows the same as it does.
    """
    return _PUBLISHED[type(event)](
        timestamp=at,
        order_id=order.id,
        order_version=order.version,
        user_id=order.user_id,
        status=order.status.value,
        items=tuple(
            OrderLine(sku=item.sku, quantity=item.quantity, unit_price=item.unit_price)
            for item in order.items
        ),
        total=order.total,
        placed_at=placed_at,
    )
