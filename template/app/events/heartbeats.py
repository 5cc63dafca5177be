"""The events about heartbeats: what is published, what is done about it, and by which consumer.

The types are contracts: a change that readers could trip over needs a new version, with an upcaster
from the old one, an exported schema and a golden sample of the new one (tests/events).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.kafka.event import BaseEvent, EventType
from app.kafka.subscription import Subscription
from app.repositories.heartbeats import HeartbeatCountRepository
from app.unit_of_work import UnitOfWork

# What fits the database. A message beyond it can never be handled, so it is refused when decoded.
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
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


async def count_heartbeats(events: Sequence[HeartbeatSent], uow: UnitOfWork) -> None:
    """Applied twice, the count would be wrong: the inbox row of each event sees to that.

    Many events share a row of the counts. So a batch is taken at once and its rows are locked in
    one order: two batches with the same rows wait for each other and never deadlock.
    """
    heartbeats = Counter(event.source for event in events)
    await HeartbeatCountRepository(uow.session).add(heartbeats)


EVENTS = [
    EventType(HeartbeatSent),
]

SUBSCRIPTIONS = [
    Subscription("heartbeat-counts", {HeartbeatSent: count_heartbeats}, batch=True),
]
