"""Consumers of the orders slice. Their effects are committed with the inbox row, or not at all."""

from collections import Counter
from collections.abc import Sequence

from app.orders.events import OrderCreated
from app.orders.repository import InventoryRepository
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription


async def reserve_inventory(events: Sequence[OrderCreated], uow: UnitOfWork) -> None:
    """Add to what is reserved of each SKU: applied twice, it would be wrong.

    Many events share a row. So a batch is taken at once and its rows are locked in one order: two
    batches with the same rows wait for each other and never deadlock.
    """
    quantities: Counter[str] = Counter()
    for event in events:
        for line in event.items:
            quantities[line.sku] += line.quantity
    await InventoryRepository(uow.session).reserve(quantities)


SUBSCRIPTIONS = [
    Subscription("inventory", {OrderCreated: reserve_inventory}, batch=True),
]
