from datetime import UTC, datetime
from decimal import Decimal
from typing import get_args

import pytest

from app.domain import orders
from app.domain.orders import OrderEvent, OrderItem, fold
from app.events.integration import integration_event
from app.events.types import OrderCancelled, OrderCreated, OrderPaid
from app.kafka.event import BaseEvent

PLACED_AT = datetime(2025, 3, 1, 9, 32, tzinfo=UTC)
AT = datetime(2025, 3, 2, 10, tzinfo=UTC)
PLACED = orders.OrderPlaced(1, 7, (OrderItem("tea", 2, Decimal("3.50")),))


@pytest.mark.parametrize(
    ("history", "published", "status"),
    [
        ([PLACED], OrderCreated, "placed"),
        ([PLACED, orders.OrderPaid(1)], OrderPaid, "paid"),
        ([PLACED, orders.OrderCancelled(1)], OrderCancelled, "cancelled"),
    ],
)
def test_what_is_published_carries_the_full_state(
    history: list[OrderEvent], published: type[BaseEvent], status: str
) -> None:
    order = fold(history)
    assert order is not None
    event = integration_event(history[-1], order, PLACED_AT, AT)
    assert type(event) is published
    assert event.model_dump(mode="json", exclude={"event_id", "version"}) == {
        "timestamp": "2025-03-02T10:00:00Z",
        "event_type": published.model_fields["event_type"].default,
        "order_id": 1,
        "order_version": len(history),
        "user_id": 7,
        "status": status,
        "items": [{"sku": "tea", "quantity": 2, "unit_price": "3.50"}],
        "total": "7.00",
        "placed_at": "2025-03-01T09:32:00Z",
    }
    assert event.key == "1"


def test_every_event_of_the_domain_is_published() -> None:
    order = fold([PLACED])
    assert order is not None
    events: list[OrderEvent] = [PLACED, orders.OrderPaid(1), orders.OrderCancelled(1)]
    assert {type(event) for event in events} == set(get_args(OrderEvent))
    for event in events:
        integration_event(event, order, PLACED_AT, AT)
