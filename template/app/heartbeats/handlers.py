"""Consumers of heartbeats. Their effects are committed with the inbox row, or not at all."""

from collections import Counter
from collections.abc import Sequence

from app.heartbeats.events import HeartbeatSent
from app.heartbeats.repository import HeartbeatCountRepository
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription


async def count_heartbeats(events: Sequence[HeartbeatSent], uow: UnitOfWork) -> None:
    """Applied twice, the count would be wrong: the inbox row of each event sees to that.

    Many events share a row of the counts. So a batch is taken at once and its rows are locked in
    one order: two batches with the same rows wait for each other and never deadlock.
    """
    heartbeats = Counter(event.source for event in events)
    await HeartbeatCountRepository(uow.session).add(heartbeats)


SUBSCRIPTIONS = [
    Subscription("heartbeat-counts", {HeartbeatSent: count_heartbeats}, batch=True),
]
