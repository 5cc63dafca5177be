"""The routes of the event store: the history of an order, and its past states."""

from app.orders.router import OrderResponse
from app.orders.stream import ORDERS
from app.platform.event_store.history import EventResponse, history_router
from app.platform.http.dependencies import PathId


class OrderEventResponse(EventResponse):
    """An event as the newest version of the service understands it.

    `command_id` is the `Idempotency-Key` of the request, `actor` the value of its `X-Actor`.
    """

    correlation_id: str | None = None
    causation_id: str | None = None
    command_id: str | None = None
    actor: str | None = None


async def get_stream_id(order_id: PathId) -> int:
    return order_id


router = history_router(
    "/orders/{order_id}", ORDERS, get_stream_id, OrderEventResponse, OrderResponse, tag="orders"
)
