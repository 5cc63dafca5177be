"""The command line, a module a group. `app/cli.py` says which are plugged in."""

from collections.abc import Sequence
from dataclasses import dataclass

from app import wiring
from app.config import Settings, load
from app.kafka.event import EventRegistry
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import Subscription
from app.kafka.topics import Topic, wanted


@dataclass(frozen=True)
class Context:
    """Settings, events and subscriptions of the service."""

    kafka: KafkaSettings
    registry: EventRegistry
    subscriptions: Sequence[Subscription]

    @classmethod
    def from_environment(cls) -> "Context":
        """Raises ConfigurationError."""
        registry = EventRegistry(load(Settings).service_name, wiring.EVENTS)
        return cls(load(KafkaSettings), registry, wiring.SUBSCRIPTIONS)

    def topics(self) -> list[Topic]:
        """Every topic that the service owns."""
        return wanted(self.kafka, self.registry, self.subscriptions)
