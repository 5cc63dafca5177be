"""Consumers of posts. Their effects commit together with the inbox row."""

from collections import Counter
from collections.abc import Sequence

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription
from app.posts.events import PostPublished
from app.users.repository import ProfileRepository


async def count_posts(events: Sequence[PostPublished], uow: UnitOfWork) -> None:
    """Add to the counts of the authors. The inbox applies each event once."""
    posts = Counter(event.author_id for event in events)
    await ProfileRepository(uow.session).add_posts(posts)


SUBSCRIPTIONS = [
    Subscription("post-counts", {PostPublished: count_posts}, batch=True),
]
