"""The events of posts: what this service tells others about them.

They are contracts: a change that readers could trip over needs a new version, with an upcaster from
the old one, an exported schema and a golden sample of the new one (tests/contracts).
"""

from typing import ClassVar, Literal

from app.platform.events.event import BaseEvent, EventType, Id


class PostPublished(BaseEvent):
    """A user's post is there for others to read."""

    key_field: ClassVar[str] = "post_id"

    event_type: Literal["post.published"] = "post.published"
    post_id: Id
    author_id: Id
    title: str


EVENTS = [
    EventType(PostPublished),
]
