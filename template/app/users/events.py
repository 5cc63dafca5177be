"""The events of users: what this service tells others about them.

They are contracts: a change that readers could trip over needs a new version, with an upcaster from
the old one, an exported schema and a golden sample of the new one (tests/contracts).
"""

from typing import ClassVar, Literal

from pydantic import Field

from app.platform.events.event import VERSION_PATTERN, BaseEvent, EventType, Id, Payload


class UserCreated(BaseEvent):
    """A user signed up. Version 2.0.0 has the phone number, which not everybody gives."""

    key_field: ClassVar[str] = "user_id"

    version: str = Field("2.0.0", pattern=VERSION_PATTERN)
    event_type: Literal["user.created"] = "user.created"
    user_id: Id
    email: str
    username: str
    phone: str | None


def user_created_2(payload: Payload) -> Payload:
    """2.0.0 added `phone`, and nobody had been asked for it before."""
    return {**payload, "version": "2.0.0", "phone": None}


EVENTS = [
    EventType(UserCreated, upcasters={1: user_created_2}),
]
