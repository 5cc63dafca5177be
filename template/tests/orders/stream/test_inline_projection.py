"""The read table of a service without a read side, written in the append's transaction."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, text

from app.orders.domain import OrderStatus
from app.orders.models import OrderItemRow, OrderRow
from app.orders.repository import SqlOrderRepository
from app.orders.stream import ORDERS, EventSourcedOrders
from app.orders.stream_table import project
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.errors import DomainError
from app.platform.event_store.model import EventRow
from app.platform.event_store.store import EventStore
from app.platform.outbox.model import OutboxRow
from tests.orders.stream.conftest import Cli, Shop

STEPS = st.lists(
    st.tuples(st.sampled_from(["place", "pay", "cancel"]), st.integers(0, 3)), max_size=12
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
async def test_the_table_equals_the_fold_of_the_events(
    shop: Shop, steps: list[tuple[str, int]]
) -> None:
    """Random commands: invariants hold, and fold, inline rows and rebuilt rows are the same."""
    await shop.empty()
    model: dict[int, OrderStatus] = {}
    for action, number in steps:
        if action == "place":
            model[(await shop.place()).id] = OrderStatus.PLACED
        elif number < len(model):
            await settle(shop, model, [*model][number], action)
    await is_consistent(shop, model)


async def settle(shop: Shop, model: dict[int, OrderStatus], order_id: int, action: str) -> None:
    command = shop.pay if action == "pay" else shop.cancel
    if model[order_id] is OrderStatus.PLACED:
        model[order_id] = (await command(order_id)).status
    else:
        with pytest.raises(DomainError):
            await command(order_id)


async def is_consistent(shop: Shop, model: dict[int, OrderStatus]) -> None:
    folded = await shop.folded()
    assert {order.id: order.status for order in folded} == model
    inline = await shop.content()
    async with shop.database.sessions() as session, session.begin():
        orders = EventSourcedOrders(UnitOfWork(session, None))  # type: ignore[arg-type]  # only reads
        rows = SqlOrderRepository(UnitOfWork(session, None))  # type: ignore[arg-type]  # only reads
        for order in folded:
            assert await orders.get(order.id) == await rows.get(order.id) == order
        await session.execute(delete(OrderItemRow))
        await session.execute(delete(OrderRow))
        store = EventStore(session, ORDERS)
        loaded = await store.load_many(await store.streams(0, 1000))
        if loaded:
            await project(session, loaded)
    assert await shop.content() == inline
    assert await shop.count(EventRow) == await shop.count(OutboxRow)


async def test_an_older_state_overwrites_no_newer_row(shop: Shop) -> None:
    order = await shop.place()
    async with shop.database.sessions() as session, session.begin():
        early = await EventStore(session, ORDERS).load(order.id)
        assert early is not None
    await shop.pay(order.id)
    before = await shop.content()
    async with shop.database.sessions() as session, session.begin():
        await project(session, [early])
    assert await shop.content() == before


async def test_rows_are_as_old_as_their_events(shop: Shop) -> None:
    order = await shop.place()
    await shop.pay(order.id)
    async with shop.database.sessions() as session:
        first, second = await EventStore(session, ORDERS).events(order.id)
    assert (await shop.content())[0][5:] == (first.recorded_at, second.recorded_at)


# app event-store verify


async def test_the_read_table_agrees_with_the_events(cli: Cli, shop: Shop) -> None:
    await shop.pay((await shop.place()).id)
    await shop.place()
    answer = await cli("verify")
    assert (answer.exit_code, answer.stdout) == (0, "2 streams, 0 differ, 0 repaired\n")


CORRUPTIONS = {
    "status is cancelled, its events say paid": "UPDATE orders SET status = 'cancelled'",
    "total is 1.00, its events say 19.00": "UPDATE orders SET total = 1",
    "version is 9, its events say 2": "UPDATE orders SET version = 9",
    "items is": "UPDATE order_items SET quantity = quantity + 1",
    "has events, and is not read": "TRUNCATE orders, order_items",
}


@pytest.mark.parametrize(("message", "corruption"), CORRUPTIONS.items())
async def test_a_row_that_differs_is_reported_and_repaired(
    cli: Cli, shop: Shop, message: str, corruption: str
) -> None:
    order = await shop.place()
    await shop.pay(order.id)
    before = await shop.content()
    async with shop.database.engine.begin() as connection:
        await connection.execute(text(corruption))
    answer = await cli("verify", "--patience", "0")
    assert answer.exit_code == 1
    assert f"{order.id}: " in answer.stdout
    assert message in answer.stdout
    assert "1 stream, 1 differs, 0 repaired" in answer.stdout
    assert (await cli("verify", "--patience", "0", "--repair")).exit_code == 0
    assert await shop.content() == before


@pytest.mark.parametrize("number", [1, 3, 9])
async def test_a_row_without_events_is_reported(cli: Cli, shop: Shop, number: int) -> None:
    """Below, between and above the orders that have some."""
    async with shop.database.engine.begin() as connection:
        await connection.execute(text("SELECT setval('order_ids', 1)"))
        row = {"id": number, "user_id": 7, "status": "placed", "total": 1, "version": 1}
        await connection.execute(insert(OrderRow).values(row))
    await shop.place()
    async with shop.database.engine.begin() as connection:
        await connection.execute(text("SELECT setval('order_ids', 3)"))
    await shop.place()
    answer = await cli("verify", "--patience", "0")
    assert answer.exit_code == 1
    assert answer.stdout == (
        f"{number}: is read, and has no events\n2 streams, 1 differs, 0 repaired\n"
    )


async def test_a_broken_stream_is_reported_and_stays_broken(cli: Cli, shop: Shop) -> None:
    order = await shop.place()
    await shop.pay(order.id)
    await shop.place()
    async with shop.database.engine.begin() as connection:
        await connection.execute(text("SET LOCAL event_store.erasing = 'on'"))
        await connection.execute(
            delete(EventRow).where(EventRow.stream_id == order.id, EventRow.version == 1)
        )
    answer = await cli("verify", "--patience", "0", "--repair")
    assert answer.exit_code == 1
    assert f"{order.id}: order {order.id} has no event 1" in answer.stdout
