"""Migrations, repositories and handlers on a real database."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from decimal import Decimal

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from app.database import Base, Database, async_url
from app.domain.orders import Order, OrderItem, OrderStatus, evolve, pay, place
from app.errors import VersionConflict
from app.events.handlers import count_posts, create_profile, reserve_inventory
from app.events.types import OrderCreated, OrderLine, PostPublished, UserCreated
from app.kafka.event import BaseEvent
from app.migrate import configuration, upgrade
from app.models import OrderRow, Profile, User
from app.repositories.orders import (
    InventoryRepository,
    OrderFilter,
    OrderRepository,
    SqlOrderQueries,
    SqlOrderRepository,
)
from app.unit_of_work import UnitOfWork, UnitsOfWork
from tests.fixtures.servers import temporary_database


@pytest.fixture
def empty_database_url(database_server_url: str) -> Iterator[str]:
    with temporary_database(database_server_url) as url:
        yield url


async def alembic(url: str, step: Callable[[Config], None]) -> None:
    def run(connection: Connection) -> None:
        config = configuration()
        config.attributes["connection"] = connection
        step(config)

    engine = create_async_engine(async_url(url), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()


async def tables(url: str) -> set[str]:
    engine = create_async_engine(async_url(url), poolclass=NullPool)
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    await engine.dispose()
    return set(names)


async def test_the_migrations_make_what_the_models_say(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    await alembic(empty_database_url, command.check)


async def test_every_table_of_the_service_is_made(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    assert await tables(empty_database_url) == {*Base.metadata.tables, "alembic_version"}


async def test_upgrading_twice_changes_nothing(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    await upgrade(empty_database_url)


async def test_processes_that_upgrade_at_once_take_turns(empty_database_url: str) -> None:
    await asyncio.gather(*(upgrade(empty_database_url) for _ in range(4)))
    assert "users" in await tables(empty_database_url)


async def test_the_way_back_leaves_nothing(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    await alembic(empty_database_url, lambda config: command.downgrade(config, "base"))
    assert await tables(empty_database_url) == {"alembic_version"}


async def test_each_module_is_a_branch_of_its_own(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    engine = create_async_engine(async_url(empty_database_url), poolclass=NullPool)
    async with engine.connect() as connection:
        heads = await connection.scalars(text("SELECT version_num FROM alembic_version"))
    await engine.dispose()
    assert any(head.startswith("core_") for head in heads)


ITEMS = (OrderItem("tea", 2, Decimal("3.50")), OrderItem("cup", 1, Decimal("0.01")))


@pytest.fixture
async def uow(database: Database) -> AsyncIterator[UnitOfWork]:
    async with UnitsOfWork(database.sessions, bind).begin() as uow:
        uow.session.add(User(id=7, email="ada@example.com", username="ada"))
        await uow.session.flush()
        yield uow


@pytest.fixture
def orders(uow: UnitOfWork) -> OrderRepository:
    return SqlOrderRepository(uow)


async def placed(orders: OrderRepository) -> Order:
    events = place(await orders.next_id(), 7, ITEMS)
    order = evolve(None, events[0])
    await orders.save(order, events, expected_version=0)
    return order


async def test_an_order_is_loaded_as_it_was_saved(orders: OrderRepository) -> None:
    order = await placed(orders)
    assert await orders.get(order.id) == order


async def test_ids_are_never_given_twice(orders: OrderRepository) -> None:
    ids = [await orders.next_id() for _ in range(5)]
    assert len(set(ids)) == 5


async def test_an_order_that_was_never_saved_is_not_there(orders: OrderRepository) -> None:
    assert await orders.get(await orders.next_id()) is None


async def test_a_change_is_saved_over_the_version_that_it_began_with(
    orders: OrderRepository,
) -> None:
    order = await placed(orders)
    events = pay(order)
    paid = evolve(order, events[0])
    await orders.save(paid, events, expected_version=order.version)
    assert await orders.get(order.id) == paid


@pytest.mark.parametrize("expected_version", [2, 3])
async def test_a_change_of_another_version_is_a_conflict(
    orders: OrderRepository, expected_version: int
) -> None:
    order = await placed(orders)
    events = pay(order)
    with pytest.raises(VersionConflict):
        await orders.save(evolve(order, events[0]), events, expected_version)
    assert await orders.get(order.id) == order


async def test_an_order_that_is_there_cannot_be_new(orders: OrderRepository) -> None:
    order = await placed(orders)
    with pytest.raises(VersionConflict):
        await orders.save(order, place(order.id, 7, ITEMS), expected_version=0)


@pytest.fixture
async def many_orders(database: Database) -> SqlOrderQueries:
    """Two thousand orders of a hundred users, with statistics."""
    async with database.sessions() as session, session.begin():
        session.add_all(User(id=n, email=f"{n}@example.com", username=f"u{n}") for n in range(100))
        await session.flush()
        session.add_all(
            OrderRow(
                id=n, user_id=n % 100, status=OrderStatus(STATUSES[n % 20]), total=1, version=1
            )
            for n in range(1, 2001)
        )
    async with database.engine.begin() as connection:
        await connection.execute(text("ANALYZE orders"))
    return SqlOrderQueries(database.sessions)


STATUSES = ["paid", "cancelled"] + ["placed"] * 18


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (OrderFilter(), "pk_orders"),
        (OrderFilter(user_id=7), "ix_orders_user_id_id"),
        (OrderFilter(status=OrderStatus.PAID), "ix_orders_status_id"),
    ],
)
async def test_a_page_is_read_from_an_index(
    many_orders: SqlOrderQueries, database: Database, wanted: OrderFilter, index: str
) -> None:
    statements: list[tuple[str, tuple[object, ...]]] = []

    def remember(
        _connection: object,
        _cursor: object,
        statement: str,
        parameters: tuple[object, ...],
        *_: object,
    ) -> None:
        statements.append((statement, parameters))

    event.listen(database.engine.sync_engine, "before_cursor_execute", remember)
    page = await many_orders.page(wanted, before=1500, limit=10)
    event.remove(database.engine.sync_engine, "before_cursor_execute", remember)
    assert len(page) == 10
    statement, parameters = statements[0]
    async with database.engine.connect() as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        lines = "\n".join(line for (line,) in plan)
    assert index in lines
    assert "Seq Scan" not in lines


ADA = UserCreated(user_id=7, email="ada@example.com", username="ada", phone=None)


class NothingPublished:
    """For handlers that publish nothing."""

    async def publish(self, event: BaseEvent) -> None:
        raise AssertionError(f"{event.event_type} was published")

    async def committed(self) -> None:
        return None


def bind(_session: AsyncSession) -> NothingPublished:
    return NothingPublished()


@pytest.fixture
def units(database: Database) -> UnitsOfWork:
    return UnitsOfWork(database.sessions, bind)


async def profile(database: Database) -> Profile | None:
    async with database.sessions() as session:
        return await session.get(Profile, ADA.user_id)


def post(post_id: int, author_id: int = ADA.user_id) -> PostPublished:
    return PostPublished(post_id=post_id, author_id=author_id, title="On engines")


def order(order_id: int, skus: Sequence[str]) -> OrderCreated:
    return OrderCreated(
        order_id=order_id,
        order_version=1,
        user_id=ADA.user_id,
        status="placed",
        items=tuple(OrderLine(sku=sku, quantity=2, unit_price=Decimal(1)) for sku in skus),
        total=Decimal(2 * len(skus)),
    )


async def test_a_profile_begins_when_the_user_signed_up(
    units: UnitsOfWork, database: Database
) -> None:
    async with units.begin() as uow:
        await create_profile(ADA, uow)
    made = await profile(database)
    assert made is not None
    assert made.created_at == ADA.timestamp
    assert made.posts_published == 0


async def test_posts_that_come_before_the_user_are_not_lost(
    units: UnitsOfWork, database: Database
) -> None:
    async with units.begin() as uow:
        await count_posts([post(1), post(2)], uow)
    early = await profile(database)
    assert early is not None
    assert early.created_at is None
    async with units.begin() as uow:
        await create_profile(ADA, uow)
        await count_posts([post(3)], uow)
    made = await profile(database)
    assert made is not None
    assert made.created_at == ADA.timestamp
    assert made.posts_published == 3


async def test_a_second_event_of_one_user_does_not_move_the_beginning(
    units: UnitsOfWork, database: Database
) -> None:
    for told in (ADA, ADA.model_copy(update={"timestamp": post(1).timestamp})):
        async with units.begin() as uow:
            await create_profile(told, uow)
    made = await profile(database)
    assert made is not None
    assert made.created_at == ADA.timestamp


async def test_a_batch_counts_every_order_and_every_line(
    units: UnitsOfWork, database: Database
) -> None:
    async with units.begin() as uow:
        await reserve_inventory([order(1, ["tea", "cup", "tea"]), order(2, ["tea"])], uow)
    async with database.sessions() as session:
        inventory = InventoryRepository(session)
        assert await inventory.reserved("tea") == 6
        assert await inventory.reserved("cup") == 2


async def test_an_order_without_items_reserves_nothing(units: UnitsOfWork) -> None:
    async with units.begin() as uow:
        await reserve_inventory([order(1, [])], uow)
        await count_posts([], uow)


async def test_batches_with_the_same_skus_wait_instead_of_deadlocking(
    units: UnitsOfWork, database: Database
) -> None:
    skus = [f"sku-{number}" for number in range(50)]

    async def reserve(skus: list[str]) -> None:
        async with units.begin() as uow:
            await reserve_inventory(
                [order(number, [sku]) for number, sku in enumerate(skus, 1)], uow
            )

    await asyncio.gather(*(reserve(skus if number % 2 else skus[::-1]) for number in range(8)))
    async with database.sessions() as session:
        assert await InventoryRepository(session).reserved("sku-0") == 16


async def test_batches_with_the_same_authors_wait_instead_of_deadlocking(
    units: UnitsOfWork, database: Database
) -> None:
    authors = list(range(1, 51))

    async def count(authors: list[int]) -> None:
        async with units.begin() as uow:
            await count_posts([post(author, author) for author in authors], uow)

    await asyncio.gather(*(count(authors if number % 2 else authors[::-1]) for number in range(8)))
    made = await profile(database)
    assert made is not None
    assert made.posts_published == 8
