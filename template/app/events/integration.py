"""From the events inside the order domain to those that the service publishes.

Internal events are as small as the decision was; integration events carry the full state, so that
readers in other services need neither our history nor a call back.
"""

from datetime import datetime

from app.domain import orders
from app.domain.orders import Order, OrderEvent
from app.events.types import OrderCancelled, OrderCreated, OrderLine, OrderPaid

Published = OrderCreated | OrderPaid | OrderCancelled

_PUBLISHED: dict[type[OrderEvent], type[Published]] = {
    orders.OrderPlaced: OrderCreated,
    orders.OrderPaid: OrderPaid,
    orders.OrderCancelled: OrderCancelled,
}


def integration_event(
    event: OrderEvent, order: Order, placed_at: datetime, at: datetime
) -> Published:
    """What to publish for `event`, which made `order` what it is now.

    The times are the write side's, so that whoever reads the events knows the same as it does.
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
