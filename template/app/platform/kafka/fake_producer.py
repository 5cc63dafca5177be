"""A producer for tests, which keeps the messages."""

from collections.abc import Sequence

from app.platform.health import Unhealthy
from app.platform.kafka.codec import Message
from app.platform.kafka.errors import (
    BrokerUnavailable,
    MessageTooLarge,
    SendError,
    TopicUnavailable,
    UnknownTopic,
)
from app.platform.kafka.producer import BlockedKeys, Outcome
from app.platform.kafka.spans import sending
from app.platform.kafka.topics import FORWARDED_HEADROOM_BYTES


class FakeProducer:
    """A producer that delivers into `sent`, in order.

    `available`, `refusing` (topics, each with a reason) and `topics` make it fail as a broker would.
    """

    def __init__(self, topics: Sequence[str] | None = None, max_bytes: int = 1_000_000) -> None:
        self.sent: list[Message] = []
        self.available = True
        self.refusing: dict[str, str] = {}
        self._topics = topics
        self._max_bytes = max_bytes

    async def ping(self) -> None:
        if not self.available:
            raise BrokerUnavailable("the fake broker is unavailable")

    async def check_topics(self) -> None:
        if self.refusing:
            raise Unhealthy("; ".join(f"{topic}: {why}" for topic, why in self.refusing.items()))

    async def send(self, message: Message) -> None:
        (outcome,) = await self.send_all([message])
        if outcome is not None:
            raise outcome

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        blocked = BlockedKeys()
        outcomes: list[Outcome] = []
        with sending(messages) as spans:
            for message in messages:
                outcomes.append(blocked.error_for(message) or self._refusal(message))
                blocked.record(message, outcomes[-1])
            spans.record(outcomes)
        self.sent += [m for m, refusal in zip(messages, outcomes, strict=True) if refusal is None]
        return outcomes

    def on(self, topic: str) -> list[Message]:
        """Return the messages delivered to `topic`."""
        return [message for message in self.sent if message.topic == topic]

    def _refusal(self, message: Message) -> SendError | None:
        if not self.available:
            return BrokerUnavailable("the fake broker is unavailable")
        limit = self._max_bytes + (FORWARDED_HEADROOM_BYTES if message.forwarded else 0)
        if message.size > limit:
            return MessageTooLarge(f"{message.size} bytes are more than {limit}")
        if self._topics is not None and message.topic not in self._topics:
            return UnknownTopic(message.topic)
        if reason := self.refusing.get(message.topic):
            return TopicUnavailable(message.topic, f"{message.topic}: {reason}", reason)
        return None
