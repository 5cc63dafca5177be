"""The events of heartbeats. They are contracts with other services.

An incompatible change needs a new version: an upcaster, an exported schema and a golden sample
(tests/contracts).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.platform.events.event import BaseEvent, EventType, Id

Source = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64, examples=["door"])
]


class HeartbeatSent(BaseEvent):
    """Something is alive."""

    key_field: ClassVar[str] = "heartbeat_id"

    event_type: Literal["heartbeat.sent"] = "heartbeat.sent"
    heartbeat_id: Id
    source: Source


EVENTS = [
    EventType(HeartbeatSent),
]
