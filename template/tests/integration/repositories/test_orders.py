from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from app.database import Database
from app.domain.orders import Order, OrderItem, evolve, pay, place
from app.errors import VersionConflict
from app.models import User
from app.repositories.orders import OrderRepository, SqlOrderRepository
from app.unit_of_work import UnitOfWork, UnitsOfWork
from tests.integration.events.test_handlers import bind

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
