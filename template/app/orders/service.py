"""Commands on orders: load, decide, save, publish."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import cast

from pydantic import Field

from app.orders import domain, events
from app.orders.domain import Order, OrderEvent, OrderItem, evolve
from app.orders.events import OrderLine, OrderStateEvent
from app.orders.repository import OrderRepository
from app.platform.config import EnvSettings
from app.platform.database.unit_of_work import EventPublisher
from app.platform.errors import DuplicateCommand, NotFound, Unprocessable, VersionConflict

# For a command without an expected version, if others change the order meanwhile.
MAX_DECISIONS = 5


class OrderService:
    """Executes commands. `expected` are the versions that the caller allows; None allows any."""

    def __init__(self, orders: OrderRepository, publisher: EventPublisher) -> None:
        self._orders = orders
        self._publisher = publisher

    async def place(self, user_id: int, items: Sequence[OrderItem]) -> Order:
        order_id = await self._orders.next_id(user_id)
        if order_id is None:
            raise Unprocessable(f"there is no user {user_id}", pointer="/user_id")
        return await self._apply(None, domain.place(order_id, user_id, items))

    async def pay(self, order_id: int, expected: Collection[int] | None) -> Order:
        return await self._change(order_id, expected, domain.pay)

    async def cancel(self, order_id: int, expected: Collection[int] | None) -> Order:
        return await self._change(order_id, expected, domain.cancel)

    async def _change(
        self,
        order_id: int,
        expected: Collection[int] | None,
        command: Callable[[Order], list[OrderEvent]],
    ) -> Order:
        for attempt in range(1, MAX_DECISIONS + 1):
            order = await self._orders.get(order_id)
            if order is None:
                raise NotFound("order", order_id)
            if expected is not None and order.version not in expected:
                raise VersionConflict("order", order_id)
            try:
                return await self._apply(order, command(order))
            except VersionConflict:
                # A caller without an expected version gets a decision on the new state.
                if expected is not None or attempt == MAX_DECISIONS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _apply(self, before: Order | None, decided: Sequence[OrderEvent]) -> Order:
        order, history = before, []
        for event in decided:
            order = evolve(order, event)
            history.append((event, order))
        if order is None:
            raise ValueError("a command that creates an order has at least one event")
        try:
            times = await self._orders.save(order, decided, before.version if before else 0)
        except DuplicateCommand as duplicate:  # its events were published the first time
            return cast(Order, duplicate.result)
        for event, after in history:
            await self._publisher.publish(
                integration_event(event, after, times.placed_at, times.changed_at)
            )
        return order


class OrderReadSettings(EnvSettings):
    """The time that `GET /orders/{id}?min_version=` waits for the version, in seconds."""

    orders_min_version_wait_seconds: float = Field(2.0, ge=0, le=60)


_PUBLISHED: dict[type[OrderEvent], Callable[..., OrderStateEvent]] = {
    domain.OrderPlaced: events.OrderCreated,
    domain.OrderPaid: events.OrderPaid,
    domain.OrderCancelled: events.OrderCancelled,
}


def integration_event(
    event: OrderEvent, order: Order, placed_at: datetime, at: datetime
) -> OrderStateEvent:
    """Return the integration event for `event`, which led to the state `order`.

    An internal event is as small as the decision; an integration event carries the full state, so
    that other services need neither the history nor a request. The times are the write side's.
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
