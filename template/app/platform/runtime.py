"""The parts of a running process. `http/app.py` builds them; lifespans and dependencies receive them."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from app.platform.background import WakeUp
from app.platform.config import (
    ConfigurationError,
    EnvSettings,
    HttpSettings,
    Settings,
    TelemetrySettings,
    check,
    load,
)
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventRegistry, EventType
from app.platform.health import Health
from app.platform.kafka.producer import Producer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import Topic, foreign_topics, required_topics
from app.platform.service import Role, Service

S = TypeVar("S", bound=EnvSettings)


@dataclass(frozen=True)
class Configuration:
    """The settings of every process."""

    service: Settings
    kafka: KafkaSettings
    database: DatabaseSettings
    http: HttpSettings
    telemetry: TelemetrySettings = field(default_factory=lambda: load(TelemetrySettings))

    @classmethod
    def from_environment(cls) -> "Configuration":
        """Load all settings. Raises ConfigurationError."""
        return cls(load(Settings), load(KafkaSettings), load(DatabaseSettings), load(HttpSettings))


@contextmanager
def naming_all_wrong_settings(others: Iterable[type[EnvSettings]] = ()) -> Iterator[None]:
    """Make a ConfigurationError of the block name all that is wrong in a process's settings and `others`."""
    try:
        yield
    except ConfigurationError:
        kinds: list[type[EnvSettings]] = [Settings, KafkaSettings, DatabaseSettings, HttpSettings]
        check([*kinds, TelemetrySettings, *others])
        raise


@dataclass(frozen=True)
class Context:
    """A service as commands use it: its events, its subscriptions and its Kafka settings."""

    kafka: KafkaSettings
    registry: EventRegistry
    subscriptions: Sequence[Subscription]

    @classmethod
    def of(cls, service: Service, service_name: str, kafka: KafkaSettings) -> "Context":
        """Build the context. Raises ConfigurationError for inconsistent events and consumers."""
        try:
            registry = EventRegistry(service_name, service.events, kafka.kafka_ce_type_prefix)
            context = cls(kafka, registry, service.subscriptions)
            context.topics()
        except (ValueError, LookupError) as error:
            raise ConfigurationError(f"wrong events or consumers: {error}") from error
        return context

    def topics(self) -> list[Topic]:
        """Return every topic that the service owns."""
        return required_topics(self.kafka, self.registry, self.subscriptions)

    def foreign_topics(self) -> list[Topic]:
        """Return the topics that the service reads and other services own."""
        return foreign_topics(self.kafka, self.registry)

    def all_topics(self) -> list[Topic]:
        """Return every topic that the service owns or reads."""
        return [*self.topics(), *self.foreign_topics()]

    def consumers_of(self, event: EventType) -> list[str]:
        """Return the names of the consumers that handle the event or its tombstones."""
        return [
            each.name
            for each in self.subscriptions
            if event.model in each.handlers or event.model in each.tombstones
        ]


@dataclass(frozen=True)
class Resources:
    """The resources of a process before components are plugged in.

    A publisher that leaves sending to a background task sets `published` after a commit; it may name
    where the events are.
    """

    configuration: Configuration
    health: Health
    database: Database
    producer: Producer
    registry: EventRegistry
    published: WakeUp = field(default_factory=WakeUp, kw_only=True)


@dataclass(frozen=True)
class Runtime(Resources):
    """The resources of a process, together with its service, settings and roles."""

    service: Service
    settings: Mapping[type[EnvSettings], EnvSettings]
    roles: Collection[Role]
    units: UnitOfWorkFactory

    def setting(self, kind: type[S]) -> S:
        """Return the settings of a component, as they were read at the start.

        Raises KeyError for a class that no component lists in its `settings`.
        """
        found = self.settings[kind]
        assert isinstance(found, kind)
        return found
