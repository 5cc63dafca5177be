"""Commands on heartbeats."""

from app.heartbeats.events import HeartbeatSent
from app.heartbeats.repository import Heartbeat, HeartbeatRepeated, HeartbeatRepository
from app.platform.database.unit_of_work import EventPublisher


class HeartbeatService:
    def __init__(self, heartbeats: HeartbeatRepository, events: EventPublisher) -> None:
        self._heartbeats = heartbeats
        self._events = events

    async def send(self, source: str) -> Heartbeat:
        try:
            heartbeat = await self._heartbeats.add(source)
        except HeartbeatRepeated as repeated:
            return repeated.heartbeat  # its event went out the first time
        await self._events.publish(
            HeartbeatSent(heartbeat_id=heartbeat.id, source=source, timestamp=heartbeat.sent_at)
        )
        return heartbeat
