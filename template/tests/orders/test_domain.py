"""The example domain: which command is allowed when, what it leads to, and what is published of it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, get_args

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from app.orders import events as types
from app.orders.domain import (
    EmptyOrder,
    Order,
    OrderCancelled,
    OrderEvent,
    OrderItem,
    OrderPaid,
    OrderPlaced,
    OrderStatus,
    TransitionNotAllowed,
    cancel,
    evolve,
    fold,
    pay,
    place,
)
from app.orders.service import integration_event
from app.platform.errors import InvalidTransition
from app.platform.events.event import BaseEvent
from app.users.events import user_created_2

Command = Callable[[Any], list[OrderEvent]]


@dataclass(frozen=True)
class Decision:
    order: Order | None
    command: Command

    def then(self, *expected: OrderEvent) -> None:
        assert self.command(self.order) == list(expected)

    def then_refused(self, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            self.command(self.order)


@dataclass(frozen=True)
class History:
    events: tuple[OrderEvent, ...]

    def when(self, command: Command) -> Decision:
        return Decision(fold(self.events), command)


def given(*events: OrderEvent) -> History:
    """`given(*events).when(command).then(*events)`: a behaviour of an aggregate in one line."""
    return History(events)


ITEMS = (OrderItem("tea", 2, Decimal("3.50")), OrderItem("cup", 1, Decimal("12.00")))
PLACED = OrderPlaced(order_id=1, user_id=7, items=ITEMS)
PAID = OrderPaid(order_id=1)
CANCELLED = OrderCancelled(order_id=1)


def test_placing_an_order_records_who_ordered_what() -> None:
    given().when(lambda _: place(1, 7, ITEMS)).then(PLACED)


def test_an_order_without_items_is_refused() -> None:
    given().when(lambda _: place(1, 7, [])).then_refused(EmptyOrder, "at least one item")


def test_a_placed_order_can_be_paid() -> None:
    given(PLACED).when(pay).then(PAID)


def test_a_placed_order_can_be_cancelled() -> None:
    given(PLACED).when(cancel).then(CANCELLED)


def test_an_order_is_paid_only_once() -> None:
    refusal = "order 1 is paid: only a placed order can be paid"
    given(PLACED, PAID).when(pay).then_refused(TransitionNotAllowed, refusal)


def test_a_paid_order_cannot_be_cancelled() -> None:
    given(PLACED, PAID).when(cancel).then_refused(TransitionNotAllowed, "order 1 is paid")


@pytest.mark.parametrize("command", [pay, cancel])
def test_a_cancelled_order_stays_cancelled(command: partial[list[OrderEvent]]) -> None:
    given(PLACED, CANCELLED).when(command).then_refused(TransitionNotAllowed, "is cancelled")


def test_the_version_counts_the_events() -> None:
    assert fold([PLACED, PAID]) == Order(1, 7, ITEMS, OrderStatus.PAID, version=2)


def test_the_total_adds_quantity_times_price() -> None:
    order = evolve(None, PLACED)
    assert order.total == Decimal("19.00")


def test_folding_goes_on_from_a_given_state() -> None:
    assert fold([PAID], fold([PLACED])) == fold([PLACED, PAID])


@pytest.mark.parametrize(
    ("history", "event"),
    [
        ([], PAID),
        ([], CANCELLED),
        ([PLACED], PLACED),
        ([PLACED], OrderPaid(order_id=2)),
        ([PLACED], OrderCancelled(order_id=2)),
    ],
)
def test_a_history_that_cannot_have_happened_is_noticed(
    history: list[OrderEvent], event: OrderEvent
) -> None:
    with pytest.raises(InvalidTransition):
        evolve(fold(history), event)


@for_all(st.lists(st.sampled_from([pay, cancel]), max_size=6))
def test_whatever_is_tried_an_order_is_settled_at_most_once(
    commands: list[partial[list[OrderEvent]]],
) -> None:
    order = evolve(None, PLACED)
    for command in commands:
        try:
            order = fold(command(order), order) or order
        except TransitionNotAllowed:
            continue
    assert order.version == 1 + bool(commands)


# What is published of it


def test_a_user_of_version_1_has_no_phone() -> None:
    payload = {"version": "1.0.0", "user_id": 7}
    assert user_created_2(payload) == {"version": "2.0.0", "user_id": 7, "phone": None}


def test_an_upcaster_leaves_its_argument_as_it_was() -> None:
    payload = {"version": "1.0.0"}
    user_created_2(payload)
    assert payload == {"version": "1.0.0"}


PLACED_AT = datetime(2025, 3, 1, 9, 32, tzinfo=UTC)
AT = datetime(2025, 3, 2, 10, tzinfo=UTC)
TEA_PLACED = OrderPlaced(1, 7, (OrderItem("tea", 2, Decimal("3.50")),))


# A history that ends with each event, what is published of it, and with which status.
PUBLISHED: list[tuple[list[OrderEvent], type[BaseEvent], str]] = [
    ([TEA_PLACED], types.OrderCreated, "placed"),
    ([TEA_PLACED, PAID], types.OrderPaid, "paid"),
    ([TEA_PLACED, CANCELLED], types.OrderCancelled, "cancelled"),
]


@pytest.mark.parametrize(("history", "published", "status"), PUBLISHED)
def test_published_events_carry_the_full_state(
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


def test_every_event_and_every_status_of_the_domain_is_published() -> None:
    assert {type(history[-1]) for history, *_ in PUBLISHED} == set(get_args(OrderEvent))
    assert {status for *_, status in PUBLISHED} == {*OrderStatus}


def test_every_event_of_orders_says_which_status_it_may_have() -> None:
    found = [
        entry.model for entry in types.EVENTS if issubclass(entry.model, types.OrderStateEvent)
    ]
    assert len(found) == len(get_args(OrderEvent))
    for model in found:
        statuses = {*get_args(model.model_fields["status"].annotation)}
        assert statuses, f"{model.__name__}.status is no Literal"
        assert statuses <= {*OrderStatus}
