"""Consumers of the posts slice. Their effects are committed with the inbox row, or not at all."""

from collections import Counter
from collections.abc import Sequence

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription
from app.posts.events import PostPublished
from app.users.repository import ProfileRepository


async def count_posts(events: Sequence[PostPublished], uow: UnitOfWork) -> None:
    """Add to the counts of the authors: applied twice, they would be wrong.

    Many events share a row. So a batch is taken at once and its rows are locked in one order: two
    batches with the same rows wait for each other and never deadlock.
    """
    posts = Counter(event.author_id for event in events)
    await ProfileRepository(uow.session).add_posts(posts)


SUBSCRIPTIONS = [
    Subscription("post-counts", {PostPublished: count_posts}, batch=True),
]
