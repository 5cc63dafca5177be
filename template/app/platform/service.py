"""A service and its components, which `app/wiring.py` lists."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeAlias

from app.platform.background import WakeUp
from app.platform.config import EnvSettings
from app.platform.database.unit_of_work import BindPublisher
from app.platform.events.event import EventRegistry, EventType
from app.platform.kafka import publisher
from app.platform.kafka.producer import Producer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription

if TYPE_CHECKING:  # commands need no HTTP
    from fastapi import APIRouter

    from app.platform.runtime import Runtime


class Role(StrEnum):
    """A job of a process. One process may have several roles; `app dev` has all."""

    API = "api"
    WORKER = "worker"
    RELAY = "relay"


def installed_version() -> str | None:
    """Return the version of the installed service, whatever the name of its distribution."""
    scripts = entry_points(group="console_scripts", name="app")
    return next((script.dist.version for script in scripts if script.dist is not None), None)


Lifespan = Callable[["Runtime"], AbstractAsyncContextManager[None]]
Routers: TypeAlias = "Sequence[APIRouter]"


@dataclass(frozen=True)
class Publishing:
    """A way for events to reach Kafka. Processes with a role in `senders` need Kafka to be ready."""

    bind: Callable[[KafkaSettings, EventRegistry, Producer, WakeUp], BindPublisher]
    senders: frozenset[Role]


@dataclass(frozen=True)
class Component:
    """A part of a service: a slice of the business, or a module of the platform."""

    name: str
    routers: Callable[[], Routers] = lambda: ()
    """Imports and returns them. Only processes that serve HTTP call it: others start faster without."""
    events: Sequence[EventType] = ()
    """The events that it publishes or consumes."""
    subscriptions: Sequence[Subscription] = ()
    projections: Sequence[Any] = ()
    """Read models, each a `projections.rebuild.Rebuildable` (module cqrs)."""
    streams: Sequence[Any] = ()
    """Event-sourced entities, each an `event_store.streams.Streams` (module event_sourcing)."""
    settings: Sequence[type[EnvSettings]] = ()
    """Settings of its own. They are validated at the start, before anything runs."""
    lifespans: Sequence[tuple[Collection[Role], Lifespan]] = ()
    """Background work, in processes that have any of the roles."""
    publishing: Publishing | None = None
    """Replaces publishing after the commit. At most one component sets it."""
    first_request: tuple[str, str] | None = None
    """Path and JSON body of a POST that `app dev` suggests to begin with."""


_AFTER_COMMIT = Publishing(publisher.bind, frozenset({Role.API, Role.WORKER}))


class Service:
    """All components together, in the order of the API documentation."""

    def __init__(self, components: Iterable[Component]) -> None:
        """Raise ValueError if two components set `publishing`."""
        self.components = tuple(components)
        own = [part.publishing for part in self.components if part.publishing is not None]
        if len(own) > 1:
            raise ValueError("only one component of a service may set `publishing`")
        self.publishing = own[0] if own else _AFTER_COMMIT

    @property
    def routers(self) -> "list[APIRouter]":
        """Import and return the routers of all components."""
        return [router for part in self.components for router in part.routers()]

    @property
    def events(self) -> list[EventType]:
        return [entry for part in self.components for entry in part.events]

    @property
    def subscriptions(self) -> list[Subscription]:
        return [entry for part in self.components for entry in part.subscriptions]

    @property
    def projections(self) -> list[Any]:
        return [entry for part in self.components for entry in part.projections]

    @property
    def projectors(self) -> list[Subscription]:
        """Return the subscriptions that update the projections: those with their names."""
        names = {entry.projection.name for entry in self.projections}
        return [entry for entry in self.subscriptions if entry.name in names]

    @property
    def streams(self) -> list[Any]:
        return [entry for part in self.components for entry in part.streams]

    @property
    def settings(self) -> list[type[EnvSettings]]:
        return [entry for part in self.components for entry in part.settings]

    @property
    def first_request(self) -> tuple[str, str] | None:
        return next((p.first_request for p in self.components if p.first_request), None)

    def lifespans(self, roles: Collection[Role]) -> list[Lifespan]:
        """Return the lifespans of a process with `roles`."""
        return [
            lifespan
            for part in self.components
            for plugged_into, lifespan in part.lifespans
            if not frozenset(plugged_into).isdisjoint(roles)
        ]
