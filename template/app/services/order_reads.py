"""Reading orders, and waiting for a version that the reader knows to exist."""

import asyncio

from pydantic import Field

from app.config import EnvSettings
from app.errors import NotFound, Unavailable
from app.repositories.order_queries import OrderFilter, OrderQueries, OrderView

_POLL_SECONDS = 0.05


class OrderReadSettings(EnvSettings):
    """How long `GET /orders/{id}?min_version=` waits for the version to be there."""

    orders_min_version_wait_seconds: float = Field(2.0, ge=0, le=60)


class NotYetThere(Unavailable):
    title = "The version is not there yet"


class OrderReads:
    def __init__(self, queries: OrderQueries, settings: OrderReadSettings) -> None:
        self._queries = queries
        self._wait = settings.orders_min_version_wait_seconds

    async def get(self, order_id: int, min_version: int | None = None) -> OrderView:
        """The order, in `min_version` or a later one. Raises NotFound and NotYetThere."""
        if min_version is not None:
            return await self._get_from(order_id, min_version)
        order = await self._queries.get(order_id)
        if order is None:
            raise NotFound("order", order_id)
        return order

    async def page(self, wanted: OrderFilter, before: int | None, limit: int) -> list[OrderView]:
        return await self._queries.page(wanted, before, limit)

    async def _get_from(self, order_id: int, min_version: int) -> OrderView:
        # Who asks for a version has seen it, so an order that is missing is one that is late.
        deadline = asyncio.get_running_loop().time() + self._wait
        while True:
            order = await self._queries.get(order_id)
            if order is not None and order.version >= min_version:
                return order
            if asyncio.get_running_loop().time() >= deadline:
                raise NotYetThere(f"order {order_id} has not reached version {min_version} here")
            await asyncio.sleep(_POLL_SECONDS)
