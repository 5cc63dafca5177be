"""Whatever the order in which events come, and however often, the read side is the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.cqrs.models import OrderViewRow, SaleRow
from app.cqrs.queries import OrderViewQueries
from app.events.types import OrderCreated
from app.kafka.event import BaseEvent
from tests.integration.cqrs.conftest import Shop

End = Literal["placed", "paid", "cancelled"]

# Each example empties the database, which the fixture gives but once.
example_by_example = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass(frozen=True)
class Story:
    """Some users, and what became of their orders."""

    users: int
    ends: list[tuple[int, End]]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    users = draw(st.integers(1, 3))
    end: st.SearchStrategy[End] = st.sampled_from(["placed", "paid", "cancelled"])
    orders = st.lists(st.tuples(st.integers(0, users - 1), end), min_size=1, max_size=6)
    return Story(users, draw(orders))


async def tell(shop: Shop, story: Story) -> None:
    users = [await shop.sign_up(f"user-{number}") for number in range(story.users)]
    for user, end in story.ends:
        order_id = await shop.place(users[user])
        if end == "paid":
            await shop.pay(order_id)
        elif end == "cancelled":
            await shop.cancel(order_id)


def batches(data: st.DataObject, events: Sequence[BaseEvent]) -> list[list[BaseEvent]]:
    """All of `events`, some of them twice, in any order, cut anywhere."""
    again = data.draw(st.lists(st.sampled_from(events), max_size=6))
    shuffled = data.draw(st.permutations([*events, *again]))
    cut = data.draw(st.integers(0, len(shuffled)))
    return [shuffled[:cut], shuffled[cut:]]


@given(story=stories(), data=st.data())
@example_by_example
async def test_any_shuffle_with_duplicates_gives_the_same_read_side(
    shop: Shop, story: Story, data: st.DataObject
) -> None:
    await shop.empty()
    await tell(shop, story)
    history = list(shop.events)
    for event in history:
        await shop.deliver(event)
    in_order = await shop.content()
    await shop.rebuild_all()
    assert await shop.content() == in_order

    await shop.forget()
    for batch in batches(data, history):
        await shop.deliver(*batch)
    assert await shop.content() == in_order


async def test_the_view_says_what_the_write_side_would_have_to_join(shop: Shop) -> None:
    order_id = await shop.place(await shop.sign_up("ada"))
    await shop.pay(order_id)
    await shop.deliver(*shop.events)
    (row,) = (await shop.content(OrderViewRow))["order_views"]
    items = [
        {"sku": "tea", "quantity": 2, "unit_price": "3.50"},
        {"sku": "cup", "quantity": 1, "unit_price": "12.00"},
    ]
    placed, paid = shop.events[1:]
    assert row == (
        order_id,
        1,
        "paid",
        items,
        3,
        Decimal("19.00"),
        2,
        placed.timestamp,
        paid.timestamp,
    )


async def test_what_is_paid_counts_on_its_day(shop: Shop) -> None:
    user_id = await shop.sign_up("ada")
    for number in range(3):
        order_id = await shop.place(user_id)
        if number:
            await shop.pay(order_id)
    await shop.cancel(await shop.place(user_id))
    await shop.deliver(*shop.events)
    today = datetime.now(UTC).date()
    content = await shop.content()
    assert content["daily_sales"] == [(today, 2, Decimal("38.00"))]
    assert len(content["sales"]) == 4


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
async def test_neither_stream_has_to_come_first(shop: Shop, order: list[int]) -> None:
    order_id = await shop.place(await shop.sign_up("ada"))
    queries = OrderViewQueries(shop.database.sessions)
    names = []
    for index in order:
        await shop.deliver(shop.events[index])
        found = await queries.get(order_id)
        names.append(found and found.customer_name)
    assert names == [None, "ada"]


async def test_an_order_is_whole_when_its_first_event_was_never_seen(shop: Shop) -> None:
    order_id = await shop.place(await shop.sign_up("ada"))
    await shop.pay(order_id)
    whole = shop.events[:]
    await shop.deliver(whole[0], whole[2])
    seen = await shop.content()
    await shop.deliver(whole[1])
    assert await shop.content() == seen
    assert seen["order_views"][0][7] == whole[1].timestamp


async def test_a_message_of_the_first_minor_version_is_projected_without_its_time(
    shop: Shop,
) -> None:
    old = OrderCreated(
        version="1.0.0",
        order_id=1,
        order_version=1,
        user_id=1,
        status="placed",
        items=(),
        total=Decimal(0),
    )
    await shop.deliver(old)
    content = await shop.content(OrderViewRow, SaleRow)
    assert content["order_views"][0][7:] == (None, old.timestamp)
    assert content["sales"] == [(1, 1, None, Decimal("0.00"))]
