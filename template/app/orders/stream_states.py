"""The states of orders, from their events, for rebuilding the read side (module cqrs)."""

from app.orders.domain import Order
from app.orders.stream import ORDERS
from app.orders.views import OrderState
from app.platform.event_store.store import StreamState
from app.platform.event_store.streams import StreamSource


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


ORDER_STREAMS = StreamSource(ORDERS, _state)
