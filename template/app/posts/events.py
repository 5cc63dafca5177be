"""The events of posts. They are contracts with other services.

An incompatible change needs a new version: an upcaster, an exported schema and a golden sample
(tests/contracts).
"""

from typing import ClassVar, Literal

from app.platform.events.event import BaseEvent, EventType, Id


class PostPublished(BaseEvent):
    """A post was published."""

    key_field: ClassVar[str] = "post_id"

    event_type: Literal["post.published"] = "post.published"
    post_id: Id
    author_id: Id
    title: str


EVENTS = [
    EventType(PostPublished),
]
