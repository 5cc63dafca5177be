"""The events of heartbeats: what this service tells others about them.

They are contracts: a change that readers could trip over needs a new version, with an upcaster
from the old one, an exported schema and a golden sample of the new one (tests/contracts).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.platform.events.event import BaseEvent, EventType, Id

# What fits the database. A message beyond it can never be handled, so it is refused when decoded.
Source = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64, examples=["door"]),
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
