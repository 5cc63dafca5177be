"""A producer without a broker, for tests and demonstrations. It keeps what it was sent."""

from collections.abc import Sequence

from app.kafka.errors import BrokerUnavailable, MessageTooLarge, SendError, UnknownTopic
from app.kafka.message import Message
from app.kafka.producer import Outcome, RefusedKeys
from app.kafka.topics import FORWARDED_HEADROOM_BYTES


class FakeProducer:
    """Delivers into `sent`, in order. `available` and `topics` make it fail as a broker would."""

    def __init__(self, topics: Sequence[str] | None = None, max_bytes: int = 1_000_000) -> None:
        self.sent: list[Message] = []
        self.available = True
        self._topics = topics
        self._max_bytes = max_bytes

    async def ping(self) -> None:
        if not self.available:
            raise BrokerUnavailable("the fake broker is away")

    async def send(self, message: Message) -> None:
        (outcome,) = await self.send_all([message])
        if outcome is not None:
            raise outcome

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        refused = RefusedKeys()
        outcomes: list[Outcome] = []
        for message in messages:
            outcomes.append(refused.before(message) or self._refusal(message))
            refused.note(message, outcomes[-1])
        self.sent += [m for m, refusal in zip(messages, outcomes, strict=True) if refusal is None]
        return outcomes

    def on(self, topic: str) -> list[Message]:
        """What was delivered to `topic`."""
        return [message for message in self.sent if message.topic == topic]

    def _refusal(self, message: Message) -> SendError | None:
        if not self.available:
            return BrokerUnavailable("the fake broker is away")
        limit = self._max_bytes + (FORWARDED_HEADROOM_BYTES if message.forwarded else 0)
        if message.size > limit:
            return MessageTooLarge(f"{message.size} bytes are more than {limit}")
        if self._topics is not None and message.topic not in self._topics:
            return UnknownTopic(f"the topic {message.topic} does not exist")
        return None
