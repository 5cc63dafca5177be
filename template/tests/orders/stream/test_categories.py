import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import wiring
from app.orders import domain as orders
from app.orders.domain import Order, OrderEvent, OrderItem, OrderPlaced, evolve, fold
from app.orders.service import integration_event
from app.orders.stream import ORDERS
from app.platform.event_store.category import Category, EventType, UnknownEvent
from app.platform.events.event import BaseEvent, EventRegistry

# Each version of each event, as it was stored. None is ever changed or taken out.
PLACED = OrderPlaced(
    order_id=7,
    user_id=3,
    items=(OrderItem("tea", 2, Decimal("3.50")), OrderItem("cup", 1, Decimal("12.00"))),
)
PLACED_1 = {
    "order_id": 7,
    "user_id": 3,
    "items": [
        {"sku": "tea", "quantity": 2, "price_cents": 350},
        {"sku": "cup", "quantity": 1, "price_cents": 1200},
    ],
}
PLACED_2 = {
    "order_id": 7,
    "user_id": 3,
    "items": [
        {"sku": "tea", "quantity": 2, "unit_price": "3.50"},
        {"sku": "cup", "quantity": 1, "unit_price": "12.00"},
    ],
}
GOLDEN = [
    ("order.placed", 1, PLACED_1, PLACED),
    ("order.placed", 2, PLACED_2, PLACED),
    ("order.paid", 1, {"order_id": 7}, orders.OrderPaid(7)),
    ("order.cancelled", 1, {"order_id": 7}, orders.OrderCancelled(7)),
]


@pytest.mark.parametrize(("name", "version", "data", "event"), GOLDEN)
def test_an_event_of_every_version_still_loads(
    name: str, version: int, data: dict[str, Any], event: OrderEvent
) -> None:
    assert ORDERS.read(name, version, json.dumps(data)) == event


def test_every_version_has_a_golden_sample() -> None:
    assert {(name, version) for name, version, *_ in GOLDEN} == {
        (entry.name, version) for entry in ORDERS.types for version in range(1, entry.version + 1)
    }


@pytest.mark.parametrize("entry", ORDERS.types, ids=lambda entry: entry.name)
def test_stored_events_equal_the_newest_golden_samples(
    entry: EventType[OrderEvent],
) -> None:
    """A field that is renamed or given another form shows here: it needs a new version."""
    (data,) = (
        data for name, version, data, _ in GOLDEN if (name, version) == (entry.name, entry.version)
    )
    event = entry.load(entry.version, json.dumps(data))
    assert json.loads(entry.adapter.dump_json(event)) == data


def test_every_event_of_the_domain_can_be_stored() -> None:
    assert {entry.model for entry in ORDERS.types} == set(get_args(OrderEvent))


ITEMS = st.builds(
    OrderItem,
    sku=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    quantity=st.integers(1, 1_000_000),
    unit_price=st.decimals(0, Decimal("9999999999.99"), places=2),
)


@given(
    st.builds(OrderPlaced, st.integers(1, 2**63 - 1), st.integers(1), st.lists(ITEMS).map(tuple))
)
def test_an_event_is_loaded_as_it_was_stored(event: OrderPlaced) -> None:
    entry = ORDERS.type_of(event)
    assert entry.load(entry.version, entry.adapter.dump_json(event).decode()) == event


def test_a_snapshot_is_loaded_as_it_was_taken() -> None:
    order = evolve(None, OrderPlaced(7, 3, (OrderItem("tea", 2, Decimal("3.50")),)))
    adapter = ORDERS.state_adapter
    assert adapter.validate_json(adapter.dump_json(order)) == order


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("order.lost", 1, "no such event of order"),
        ("order.placed", 3, "version 3: this service knows 2"),
        ("order.placed", 0, "version 0"),
    ],
)
def test_unreadable_events_are_named(name: str, version: int, message: str) -> None:
    with pytest.raises(UnknownEvent, match=message):
        ORDERS.read(name, version, "{}")


@dataclass(frozen=True)
class Stranger:
    pass


def test_an_event_of_another_category_is_refused() -> None:
    with pytest.raises(LookupError, match="Stranger is no event of order"):
        ORDERS.type_of(Stranger())  # type: ignore[arg-type]  # that is the mistake


def test_a_version_without_an_upcaster_is_refused() -> None:
    with pytest.raises(ValueError, match="no upcaster from version 2"):
        EventType("order.placed", OrderPlaced, 3, {1: dict})


@pytest.mark.parametrize(
    ("before", "after", "due"),
    [(0, 1, False), (98, 99, False), (99, 100, True), (100, 101, False), (95, 205, True)],
)
def test_a_snapshot_is_due_at_multiples(before: int, after: int, due: bool) -> None:
    assert ORDERS.snapshot_is_due(before, after) is due


# What leaves the service


def test_no_internal_event_can_be_published() -> None:
    registry = EventRegistry("shop", wiring.service.events)
    for entry in ORDERS.types:
        assert not issubclass(entry.model, BaseEvent)
        with pytest.raises(LookupError):
            registry.topic(entry.model)


@pytest.mark.parametrize("command", [orders.pay, orders.cancel])
def test_every_internal_event_has_an_integration_event(command: Any) -> None:
    now = datetime.now(UTC)
    placed = orders.place(7, 3, [OrderItem("tea", 2, Decimal("3.50"))])
    order = fold(placed)
    assert order is not None
    for event, state in [(placed[0], order), *((e, evolve(order, e)) for e in command(order))]:
        published = integration_event(event, state, now, now)
        fields = {name: getattr(published, name) for name in ("order_id", "user_id", "total")}
        assert fields == {"order_id": 7, "user_id": 3, "total": Decimal("7.00")}
        assert published.order_version == state.version
        assert published.status == state.status.value
        assert len(published.items) == 1


def test_a_category_reads_only_its_own() -> None:
    empty: Category[OrderEvent, Order] = Category("empty", [], Order, evolve)
    with pytest.raises(UnknownEvent):
        empty.read("order.paid", 1, "{}")
