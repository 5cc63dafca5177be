"""Orders, worked out from their events, for rebuilding the read side (module cqrs)."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.orders.domain import Order
from app.orders.stream import ORDERS
from app.orders.views import OrderState
from app.platform.event_store.store import EventStore, StreamState


class StoredOrderStates:
    """The present state of every order in the event store."""

    async def count(self, session: AsyncSession) -> int:
        return await EventStore(session, ORDERS).count()

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[OrderState]:
        store = EventStore(session, ORDERS)
        found = await store.load_many(await store.streams(id, limit))
        return [_state(loaded) for loaded in found]


def _state(loaded: StreamState[Order]) -> OrderState:
    order = loaded.state
    return OrderState(
        order.id,
        order.version,
        order.user_id,
        order.status,
        order.items,
        order.total,
        loaded.began_at,
        loaded.changed_at,
    )
