"""Consumers of orders. Their effects commit together with the inbox row."""

from collections import Counter
from collections.abc import Sequence

from app.orders.events import OrderCreated
from app.orders.repository import InventoryRepository
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription


async def reserve_inventory(events: Sequence[OrderCreated], uow: UnitOfWork) -> None:
    """Add to the reserved pieces of each SKU. The inbox applies each event once."""
    quantities: Counter[str] = Counter()
    for event in events:
        for line in event.items:
            quantities[line.sku] += line.quantity
    await InventoryRepository(uow.session).reserve(quantities)


SUBSCRIPTIONS = [
    Subscription("inventory", {OrderCreated: reserve_inventory}, batch=True),
]
