"""The parts of a running process. `http/app.py` makes them; lifespans and dependencies receive them."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from app.platform.config import ConfigurationError, EnvSettings, HttpSettings, Settings, load
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.unit_of_work import UnitsOfWork
from app.platform.events.event import EventRegistry
from app.platform.health import Health
from app.platform.kafka.producer import Producer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import Topic, wanted
from app.platform.service import Role, Service

S = TypeVar("S", bound=EnvSettings)


@dataclass(frozen=True)
class Configuration:
    """The settings that every process needs."""

    service: Settings
    kafka: KafkaSettings
    database: DatabaseSettings
    http: HttpSettings

    @classmethod
    def from_environment(cls) -> "Configuration":
        """Raises ConfigurationError."""
        return cls(load(Settings), load(KafkaSettings), load(DatabaseSettings), load(HttpSettings))


@dataclass(frozen=True)
class Context:
    """A service as commands need it: its events and subscriptions, and how to reach Kafka."""

    kafka: KafkaSettings
    registry: EventRegistry
    subscriptions: Sequence[Subscription]

    @classmethod
    def of(cls, service: Service, service_name: str, kafka: KafkaSettings) -> "Context":
        """Raises ConfigurationError for events and consumers that do not fit together."""
        try:
            registry = EventRegistry(service_name, service.events)
            context = cls(kafka, registry, service.subscriptions)
            context.topics()
        except (ValueError, LookupError) as error:
            raise ConfigurationError(f"wrong events or consumers: {error}") from error
        return context

    def topics(self) -> list[Topic]:
        """Every topic that the service owns."""
        return wanted(self.kafka, self.registry, self.subscriptions)


@dataclass(frozen=True)
class Resources:
    """The resources of a process before components are plugged in.

    A publisher that leaves the sending to a role of the process sets `published` after a commit.
    """

    configuration: Configuration
    health: Health
    database: Database
    producer: Producer
    registry: EventRegistry
    published: asyncio.Event = field(default_factory=asyncio.Event, kw_only=True)


@dataclass(frozen=True)
class Runtime(Resources):
    """The resources, what is plugged into them, and what they are for."""

    service: Service
    settings: Mapping[type[EnvSettings], EnvSettings]
    roles: Collection[Role]
    units: UnitsOfWork

    def setting(self, kind: type[S]) -> S:
        """The settings of a component, as they were read at the start.

        Raises KeyError for a class that no component names in its `settings`.
        """
        found = self.settings[kind]
        assert isinstance(found, kind)
        return found
