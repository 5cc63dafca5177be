"""Commands on orders: load, decide, save, publish."""

from collections.abc import Callable, Collection, Sequence

from app.domain import orders
from app.domain.orders import Order, OrderEvent, OrderItem, evolve
from app.errors import NotFound, Unprocessable, VersionConflict
from app.events.integration import integration_event
from app.repositories.orders import OrderRepository
from app.repositories.users import UserRepository
from app.unit_of_work import EventPublisher


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
        order = await self._orders.get(order_id)
        if order is None:
            raise NotFound("order", order_id)
        if expected is not None and order.version not in expected:
            raise VersionConflict("order", order_id)
        return await self._apply(order, command(order))

    async def _apply(self, before: Order | None, events: Sequence[OrderEvent]) -> Order:
        order, history = before, []
        for event in events:
            order = evolve(order, event)
            history.append((event, order))
        if order is None:
            raise ValueError("a command that makes an order has at least one event")
        times = await self._orders.save(order, events, before.version if before else 0)
        for event, after in history:
            await self._events.publish(
                integration_event(event, after, times.placed_at, times.changed_at)
            )
        return order
