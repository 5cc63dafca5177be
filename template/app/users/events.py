"""The events of users. They are contracts with other services.

An incompatible change needs a new version: an upcaster, an exported schema and a golden sample
(tests/contracts).
"""

from typing import ClassVar, Literal

from pydantic import Field

from app.platform.events.event import VERSION_PATTERN, BaseEvent, EventType, Id, Payload


class UserCreated(BaseEvent):
    """A user signed up. Version 2.0.0 has the optional phone number."""

    key_field: ClassVar[str] = "user_id"

    version: str = Field("2.0.0", pattern=VERSION_PATTERN)
    event_type: Literal["user.created"] = "user.created"
    user_id: Id
    email: str
    username: str
    phone: str | None


def user_created_2(payload: Payload) -> Payload:
    """Version 2.0.0 added `phone`."""
    return {**payload, "version": "2.0.0", "phone": None}


EVENTS = [
    EventType(UserCreated, upcasters={1: user_created_2}),
]
