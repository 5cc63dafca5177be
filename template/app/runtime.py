"""What a running process consists of. `main.py` makes it; lifespans and dependencies receive it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from app.config import Settings, load
from app.database import Database, DatabaseSettings
from app.health import Health
from app.kafka.consumer import consuming
from app.kafka.event import EventRegistry
from app.kafka.inbox import inbox_retention
from app.kafka.lag import GroupLagMeter
from app.kafka.producer import Producer
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import Subscription
from app.limits import HttpSettings
from app.unit_of_work import UnitsOfWork


class Role(StrEnum):
    """What a process does. One process may have several roles; `app dev` has all."""

    API = "api"
    WORKER = "worker"
    RELAY = "relay"


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
class Resources:
    """What the process holds before anything is plugged in.

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

    roles: Collection[Role]
    units: UnitsOfWork
    subscriptions: Sequence[Subscription]


Lifespan = Callable[[Runtime], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def worker(runtime: Runtime) -> AsyncIterator[None]:
    """The lifespan of the consumers of the service, and of the upkeep of their inbox."""
    settings = runtime.configuration.kafka
    keep = timedelta(hours=settings.inbox_retention_hours)
    async with (
        inbox_retention(runtime.database.sessions, keep),
        consuming(
            runtime.subscriptions,
            runtime.registry,
            settings,
            runtime.units,
            runtime.producer,
            runtime.health,
        ),
    ):
        yield


@asynccontextmanager
async def lag_metering(runtime: Runtime) -> AsyncIterator[None]:
    """The lifespan of the meter that shows how far workers of other processes are behind.

    A worker measures its own partitions, in the same series.
    """
    if Role.WORKER in runtime.roles:
        yield
        return
    meter = GroupLagMeter(runtime.configuration.kafka, runtime.registry, runtime.subscriptions)
    async with meter.measuring():
        yield
