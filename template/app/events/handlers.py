"""The consumers, and what they do. A handler's effects are committed with its inbox row, or not at all.

The effects here are counts on purpose: applied twice, they would be wrong.
"""

from collections import Counter
from collections.abc import Sequence

from app.events.types import OrderCreated, PostPublished, UserCreated
from app.kafka.subscription import Subscription
from app.repositories.orders import InventoryRepository
from app.repositories.users import ProfileRepository
from app.unit_of_work import UnitOfWork


async def create_profile(event: UserCreated, uow: UnitOfWork) -> None:
    await ProfileRepository(uow.session).create(event.user_id, event.timestamp)


# The next two touch rows that many events share. They take a batch at once, so that its rows are
# locked in one order: two batches with the same rows wait for each other and never deadlock.


async def count_posts(events: Sequence[PostPublished], uow: UnitOfWork) -> None:
    posts = Counter(event.author_id for event in events)
    await ProfileRepository(uow.session).add_posts(posts)


async def reserve_inventory(events: Sequence[OrderCreated], uow: UnitOfWork) -> None:
    quantities: Counter[str] = Counter()
    for event in events:
        for line in event.items:
            quantities[line.sku] += line.quantity
    await InventoryRepository(uow.session).reserve(quantities)


SUBSCRIPTIONS = [
    Subscription("profiles", {UserCreated: create_profile}),
    Subscription("post-counts", {PostPublished: count_posts}, batch=True),
    Subscription("inventory", {OrderCreated: reserve_inventory}, batch=True),
]
