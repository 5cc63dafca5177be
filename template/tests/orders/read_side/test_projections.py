"""Projections on a real database: what they make of events, and their rebuilds."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.orders.customer_names import CustomerNameRow
from app.orders.events import OrderCreated, OrderPaid
from app.orders.sales import DailySalesRow, SaleRow
from app.orders.view_queries import OrderDetailFilter, OrderViewQueries
from app.orders.views import OrderViewRow
from app.platform.database.migrations import alembic_config
from app.platform.events.event import BaseEvent
from app.platform.projections.projection import RebuildRow
from app.platform.projections.rebuild import Progress, RebuildRefused, RebuildSuperseded
from tests.fixtures import eventually
from tests.orders.read_side.conftest import ORDER_TABLES, Shop

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


async def test_the_view_has_the_columns_of_several_tables(shop: Shop) -> None:
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


async def test_a_paid_order_counts_on_its_day(shop: Shop) -> None:
    user_id = await shop.sign_up("ada")
    for number in range(3):
        order_id = await shop.place(user_id)
        if number:
            await shop.pay(order_id)
    await shop.cancel(await shop.place(user_id))
    await shop.deliver(*shop.events)
    content = await shop.content()
    days = Counter(event.timestamp.date() for event in shop.events if isinstance(event, OrderPaid))
    assert content["daily_sales"] == [(d, n, 19 * n) for d, n in sorted(days.items())]
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


async def test_a_message_of_version_1_0_is_projected_without_a_time(
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


async def filled(shop: Shop, orders: int = 5) -> list[int]:
    """Orders that the read side knows."""
    user_id = await shop.sign_up("ada")
    ids = [await shop.place(user_id) for _ in range(orders)]
    await shop.deliver(*shop.events)
    return ids


def ignore(_progress: Progress) -> None: ...


async def test_a_rebuild_repairs_rows_of_a_faulty_projector(shop: Shop) -> None:
    ids = await filled(shop)
    await shop.pay(ids[0])
    await shop.deliver(shop.events[-1])
    right = await shop.content()
    await shop.corrupt()
    assert await shop.content() != right
    await shop.rebuild_all()
    assert await shop.content() == right


async def test_a_read_side_that_is_new_to_the_service_is_filled(shop: Shop) -> None:
    ids = await filled(shop)
    right = await shop.content()
    await shop.forget()
    await shop.rebuild_all()
    assert await shop.content() == right
    assert len(right["order_views"]) == len(ids)


async def test_an_empty_write_side_makes_an_empty_read_side(shop: Shop) -> None:
    await shop.rebuild_all()
    assert not any((await shop.content()).values())


async def test_the_old_tables_serve_until_the_swap(shop: Shop) -> None:
    ids = await filled(shop)
    queries = OrderViewQueries(shop.database.sessions)
    rebuild = shop.rebuild_views()
    await rebuild.register()
    await rebuild.fill()
    await shop.pay(ids[0])
    await shop.deliver(shop.events[-1])
    served = await queries.get(ids[0])
    assert served is not None
    assert served.version == 2
    while await rebuild.fill() is not None:
        assert await queries.get(ids[-1]) is not None
    await rebuild.swap()
    assert (await queries.get(ids[0])) == served


async def test_an_event_after_its_row_was_copied_is_not_lost(shop: Shop) -> None:
    ids = await filled(shop)
    rebuilds = shop.rebuild_views(batch=100), shop.rebuild_sales(batch=100)
    for rebuild in rebuilds:
        await rebuild.register()
        await rebuild.fill()
    await shop.pay(ids[0])
    await shop.deliver(shop.events[-1])
    live = await shop.content(*ORDER_TABLES)
    for rebuild in rebuilds:
        await rebuild.swap()
    assert await shop.content(*ORDER_TABLES) == live
    assert live["daily_sales"][0][1] == 1


async def test_an_event_during_a_rebuild_is_applied_exactly_once(
    shop: Shop,
) -> None:
    ids = await filled(shop)
    rebuilds = shop.rebuild_views(batch=100), shop.rebuild_sales(batch=100)
    for rebuild in rebuilds:
        await rebuild.register()
    await shop.pay(ids[0])
    await shop.deliver(shop.events[-1])
    live = await shop.content(*ORDER_TABLES)
    for rebuild in rebuilds:
        await rebuild.fill()
        await rebuild.swap()
    assert await shop.content(*ORDER_TABLES) == live
    assert live["daily_sales"][0][1] == 1


async def test_an_event_that_comes_after_the_swap_is_not_counted_twice(shop: Shop) -> None:
    ids = await filled(shop)
    await shop.pay(ids[0])  # the write side knows, the projectors do not yet
    await shop.rebuild_all()
    rebuilt = await shop.content()
    assert rebuilt["daily_sales"][0][1] == 1
    await shop.deliver(shop.events[-1])
    assert await shop.content() == rebuilt


@given(data=st.data())
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_any_interleaving_of_commands_and_batches_converges(
    shop: Shop, data: st.DataObject
) -> None:
    await shop.empty()
    rebuild = data.draw(st.sampled_from([shop.rebuild_views, shop.rebuild_sales]))()
    user_id, delivered, registered, full = await shop.sign_up("ada"), 0, False, False
    ids = [await shop.place(user_id) for _ in range(4)]
    unpaid = list(ids)
    steps = ["pay", "place", "deliver", "again", "rebuild"]
    for step in data.draw(st.lists(st.sampled_from(steps), min_size=8, max_size=20)):
        if step == "pay" and unpaid:
            await shop.pay(unpaid.pop(data.draw(st.integers(0, len(unpaid) - 1))))
        elif step == "place":
            unpaid.append(await shop.place(user_id))
        elif step == "deliver" and delivered < len(shop.events):
            await shop.deliver(shop.events[delivered])
            delivered += 1
        elif step == "again" and delivered:
            await shop.deliver(shop.events[data.draw(st.integers(0, delivered - 1))])
        elif step == "rebuild" and not registered:
            await rebuild.register()
            registered = True
        elif step == "rebuild" and not full:
            full = await rebuild.fill() is None
    if not registered:
        await rebuild.register()
    while not full:
        full = await rebuild.fill() is None
    await rebuild.swap()
    await shop.deliver(*shop.events[delivered:])
    ended = await shop.content(*ORDER_TABLES)
    await shop.forget()
    await shop.deliver(*shop.events)
    assert ended == await shop.content(*ORDER_TABLES)


async def test_readers_and_projectors_are_at_work_all_the_time(shop: Shop) -> None:
    """Every read finds every order; nothing fails; the end is right."""
    ids = await filled(shop, orders=15)
    queries = OrderViewQueries(shop.database.sessions)
    stop = asyncio.Event()
    reads = 0

    async def read() -> None:
        nonlocal reads
        seen: dict[int, int] = {}
        while not stop.is_set():
            found = await queries.find(OrderDetailFilter(), None, 100)
            assert len(found) == len(ids)
            for order in found:
                assert order.version >= seen.get(order.id, 0)
                seen[order.id] = order.version
            reads += 1

    async def pay() -> None:
        for order_id in ids:
            await shop.pay(order_id)
            await shop.deliver(shop.events[-1])
        stop.set()

    async def rebuild() -> None:
        while not stop.is_set():
            await shop.rebuild_views(batch=7).run(ignore)
            await shop.rebuild_sales(batch=7).run(ignore)

    async with asyncio.TaskGroup() as group:
        for work in (read(), read(), pay(), rebuild()):
            group.create_task(work)
    assert reads
    ended = await shop.content()
    await shop.forget()
    await shop.deliver(*shop.events)
    assert await shop.content() == ended
    assert sum(int(str(row[1])) for row in ended["daily_sales"]) == len(ids)


# What is left behind


async def test_an_interrupted_rebuild_leaves_nothing(shop: Shop) -> None:
    await filled(shop)
    before = await shop.content()

    def interrupt(_progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await shop.rebuild_views().run(interrupt)
    assert await shop.registered() == []
    assert await shop.shadows() == []
    assert await shop.content() == before


async def test_a_rebuild_that_is_cancelled_leaves_nothing(shop: Shop) -> None:
    await filled(shop)
    begun = asyncio.Event()

    def note(_progress: Progress) -> None:
        begun.set()

    task = asyncio.create_task(shop.rebuild_views(batch=1).run(note))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await shop.shadows() == []


async def test_a_rebuild_that_was_killed_can_be_repeated(shop: Shop) -> None:
    ids = await filled(shop)
    killed = shop.rebuild_views()
    await killed.register()
    await killed.fill()
    await shop.pay(ids[0])
    await shop.deliver(shop.events[-1])  # to what the killed one left, too
    right = await shop.content()
    done = await shop.rebuild_views().run(ignore)
    assert done.done == len(ids)
    assert await shop.content() == right
    assert await shop.shadows() == []


async def test_a_rebuild_stops_when_another_one_has_taken_over(shop: Shop) -> None:
    await filled(shop)
    first, second = shop.rebuild_views(), shop.rebuild_views()
    await first.register()
    await second.register()
    with pytest.raises(RebuildSuperseded):
        await first.fill()
    with pytest.raises(RebuildSuperseded):
        await first.swap()
    assert await second.fill() is not None


async def test_two_rebuilds_of_one_projection_do_not_run_at_once(shop: Shop) -> None:
    await filled(shop)
    refused: list[RebuildRefused] = []

    async def another() -> None:
        with pytest.raises(RebuildRefused, match="order-views is being rebuilt already") as error:
            await shop.rebuild_views().run(ignore)
        refused.append(error.value)
        await shop.rebuild_sales().run(ignore)  # another projection is another matter

    running: list[asyncio.Task[None]] = []

    def start_another(_progress: Progress) -> None:
        if not running:
            running.append(asyncio.create_task(another()))

    async with shop.database.sessions() as report, report.begin():
        await report.execute(text("SELECT count(*) FROM order_views"))  # the swap waits for it
        first = asyncio.create_task(shop.rebuild_views(batch=1).run(start_another))
        await eventually(lambda: asyncio.sleep(0, refused))
    await first
    await running[0]
    assert len(refused) == 1


async def test_the_swap_waits_for_a_long_reader_and_blocks_no_other(shop: Shop) -> None:
    ids = await filled(shop)
    queries = OrderViewQueries(shop.database.sessions)
    async with shop.database.sessions() as report, report.begin():
        await report.execute(text("SELECT count(*) FROM order_views"))
        rebuilding = asyncio.create_task(shop.rebuild_views().run(ignore))
        for _ in range(8):
            async with asyncio.timeout(2):
                assert await queries.get(ids[0]) is not None
            await asyncio.sleep(0.1)
        assert not rebuilding.done()
    await rebuilding


async def test_a_table_that_others_depend_on_is_not_swapped_away(shop: Shop) -> None:
    await filled(shop)
    before = await shop.content()
    async with shop.database.engine.begin() as connection:
        await connection.execute(text("CREATE VIEW report AS SELECT * FROM order_views"))
    try:
        with pytest.raises(DBAPIError, match="other objects depend on it"):
            await shop.rebuild_views().run(ignore)
        assert await shop.content() == before
        assert await shop.shadows() == []
    finally:
        async with shop.database.engine.begin() as connection:
            await connection.execute(text("DROP VIEW report"))


async def test_the_new_tables_are_as_the_models_say(shop: Shop, migrated_database_url: str) -> None:
    await filled(shop)
    for _ in range(2):
        await shop.rebuild_all()

    def check(connection: Connection) -> None:
        config: Config = alembic_config()
        config.attributes["connection"] = connection
        command.check(config)

    async with shop.database.engine.connect() as connection:
        await connection.run_sync(check)
        names = await connection.scalars(
            text("SELECT indexname FROM pg_indexes WHERE tablename = 'order_views'")
        )
        assert sorted(names) == [
            "ix_order_views_status_order_id",
            "ix_order_views_user_id_order_id",
            "pk_order_views",
        ]


async def test_who_may_read_the_old_table_may_read_the_new_one(shop: Shop) -> None:
    grants = text(
        "SELECT grantee FROM information_schema.role_table_grants"
        " WHERE table_name = 'daily_sales' AND privilege_type = 'SELECT' AND grantee = 'PUBLIC'"
    )
    async with shop.database.engine.begin() as connection:
        await connection.execute(text("GRANT SELECT ON daily_sales TO PUBLIC"))
    await shop.rebuild_sales().run(ignore)
    async with shop.database.engine.begin() as connection:
        assert await connection.scalar(grants) == "PUBLIC"
        await connection.execute(text("REVOKE SELECT ON daily_sales FROM PUBLIC"))


async def test_progress_is_reported_and_stored(shop: Shop) -> None:
    await filled(shop, orders=5)
    reported: list[tuple[int, int]] = []
    done = await shop.rebuild_views(batch=2).run(
        lambda progress: reported.append((progress.done, progress.expected))
    )
    assert reported == [(2, 5), (4, 5), (5, 5)]
    assert (done.done, done.expected) == (5, 5)
    assert done.seconds < 60
    rebuild = shop.rebuild_names()
    await rebuild.register()
    await rebuild.fill()
    async with shop.database.sessions() as session:
        row = await session.get(RebuildRow, "customer-names")
        assert row is not None
        assert (row.done, row.expected) == (1, 1)
    assert (await shop.content(CustomerNameRow))["customer_names"] == [(1, "ada")]
    assert (await shop.content(OrderViewRow, DailySalesRow))["daily_sales"] == []
