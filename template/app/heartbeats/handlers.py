"""Consumers of heartbeats. Their effects commit together with the inbox row."""

from collections import Counter
from collections.abc import Sequence

from app.heartbeats.events import HeartbeatSent
from app.heartbeats.repository import HeartbeatCountRepository
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription


async def count_heartbeats(events: Sequence[HeartbeatSent], uow: UnitOfWork) -> None:
    """Add to the counts. The inbox applies each event once, so none is counted twice."""
    await HeartbeatCountRepository(uow.session).add(Counter(event.source for event in events))


SUBSCRIPTIONS = [
    Subscription("heartbeat-counts", {HeartbeatSent: count_heartbeats}, batch=True),
]
