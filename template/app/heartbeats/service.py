"""Commands on heartbeats."""

from typing import cast

from app.heartbeats.events import HeartbeatSent
from app.heartbeats.repository import Heartbeat, HeartbeatRepository
from app.platform.database.unit_of_work import EventPublisher
from app.platform.errors import DuplicateCommand


class HeartbeatService:
    def __init__(self, heartbeats: HeartbeatRepository, events: EventPublisher) -> None:
        self._heartbeats = heartbeats
        self._events = events

    async def send(self, source: str) -> Heartbeat:
        try:
            heartbeat = await self._heartbeats.add(source)
        except DuplicateCommand as duplicate:  # its event was published the first time
            return cast(Heartbeat, duplicate.result)
        await self._events.publish(
            HeartbeatSent(heartbeat_id=heartbeat.id, source=source, timestamp=heartbeat.sent_at)
        )
        return heartbeat
