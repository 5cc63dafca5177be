import asyncio
from decimal import Decimal

import pytest

from app.domain.orders import OrderStatus
from app.errors import NotFound
from app.repositories.orders import OrderFilter, OrderView
from app.services.orders import NotYetThere, OrderReads, OrderReadSettings


class LateQueries:
    """A read side that shows order 1 in each of `versions`, one after the other."""

    def __init__(self, *versions: int | None) -> None:
        self.versions = list(versions)
        self.reads = 0

    async def get(self, order_id: int) -> OrderView | None:
        version = self.versions[min(self.reads, len(self.versions) - 1)]
        self.reads += 1
        if version is None:
            return None
        return OrderView(order_id, 7, (), Decimal(0), OrderStatus.PLACED, version)

    async def page(self, wanted: OrderFilter, before: int | None, limit: int) -> list[OrderView]:
        return []


def reads(queries: LateQueries, wait: float) -> OrderReads:
    return OrderReads(queries, OrderReadSettings(orders_min_version_wait_seconds=wait))


async def test_without_a_version_nothing_is_waited_for() -> None:
    queries = LateQueries(1, 2)
    assert (await reads(queries, wait=5).get(1)).version == 1


async def test_an_order_that_is_missing_is_not_found() -> None:
    with pytest.raises(NotFound):
        await reads(LateQueries(None), wait=5).get(1)


async def test_a_reader_waits_until_the_version_is_there() -> None:
    queries = LateQueries(None, 1, 1, 2)
    assert (await reads(queries, wait=5).get(1, min_version=2)).version == 2
    assert queries.reads == 4


async def test_a_later_version_will_do() -> None:
    assert (await reads(LateQueries(9), wait=0).get(1, min_version=2)).version == 9


@pytest.mark.parametrize("version", [None, 1])
async def test_a_reader_does_not_wait_for_ever(version: int | None) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(NotYetThere, match="version 2"):
            await reads(LateQueries(version), wait=0.1).get(1, min_version=2)


async def test_with_no_wait_it_is_looked_once() -> None:
    queries = LateQueries(1, 2)
    with pytest.raises(NotYetThere):
        await reads(queries, wait=0).get(1, min_version=2)
    assert queries.reads == 1
