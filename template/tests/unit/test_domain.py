"""Orders: which command is allowed when, and what it leads to."""

from decimal import Decimal
from functools import partial

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from app.domain.orders import (
    EmptyOrder,
    EventOutOfPlace,
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
from tests.unit.given import given

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
    given(PLACED, PAID).when(pay).then_refused(TransitionNotAllowed, "order 1 is paid")


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
    with pytest.raises(EventOutOfPlace):
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
