import asyncio
from collections.abc import Sequence
from decimal import Decimal

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import Database
from app.events.handlers import count_posts, create_profile, reserve_inventory
from app.events.types import OrderCreated, OrderLine, PostPublished, UserCreated
from app.kafka.event import BaseEvent
from app.models import Profile
from app.repositories.orders import InventoryRepository
from app.unit_of_work import UnitsOfWork

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
    for event in (ADA, ADA.model_copy(update={"timestamp": post(1).timestamp})):
        async with units.begin() as uow:
            await create_profile(event, uow)
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
