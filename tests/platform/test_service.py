"""A service, made of components."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from fastapi import APIRouter
from pydantic import Field
from samples import MeterNamed, MeterRead

from app.platform.config import EnvSettings
from app.platform.events.event import EventType
from app.platform.kafka.subscription import Subscription
from app.platform.runtime import Runtime
from app.platform.service import Component, Publishing, Role, Service


async def handle(event: object, uow: object) -> None: ...


READINGS = Subscription("readings", {MeterRead: handle})
TOTALS = Subscription("totals", {MeterRead: handle})
NAMES = Subscription("names", {MeterNamed: handle})


def bind(*_: object) -> None:
    raise AssertionError("nothing is published here")


OTHERWISE = Publishing(bind, frozenset({Role.RELAY}))  # type: ignore[arg-type]  # it is never called


def test_only_one_component_may_replace_publishing() -> None:
    outbox = Component("outbox", publishing=OTHERWISE)
    log = Component("log", publishing=replace(OTHERWISE, senders=frozenset()))

    with pytest.raises(ValueError, match="only one component of a service may set `publishing`"):
        Service([outbox, Component("meters"), log])


def test_the_publishing_of_a_component_is_that_of_the_service() -> None:
    service = Service([Component("meters"), Component("outbox", publishing=OTHERWISE)])

    assert service.publishing is OTHERWISE


def test_events_are_sent_after_the_commit_by_default() -> None:
    assert Service([Component("meters")]).publishing.senders == {Role.API, Role.WORKER}


@dataclass
class Kept:
    """A read model, as far as a service looks at it."""

    name: str

    @property
    def projection(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.name)


def test_projectors_are_the_subscriptions_named_as_projections() -> None:
    reading = Component("meters", subscriptions=[READINGS, TOTALS], projections=[Kept("totals")])
    naming = Component("names", subscriptions=[NAMES], projections=[Kept("names")])

    assert Service([reading, naming]).projectors == [TOTALS, NAMES]
    assert Service([replace(reading, projections=()), naming]).projectors == [NAMES]
    assert Service([Component("meters", subscriptions=[READINGS])]).projectors == []


class MeterSettings(EnvSettings):
    """Those of a component."""

    meter_size: int = Field(1, ge=1)


def test_a_service_has_what_its_components_have_in_their_order() -> None:
    first, second = APIRouter(), APIRouter()
    read, named = EventType(MeterRead), EventType(MeterNamed, service="shop")
    meters = Component("meters", lambda: [first], [read], [READINGS], settings=[MeterSettings])
    names = Component("names", lambda: [second], [named], [NAMES], streams=["named"])
    service = Service(part for part in [meters, names])

    assert service.components == (meters, names)
    assert service.routers == [first, second]
    assert service.events == [read, named]
    assert service.subscriptions == [READINGS, NAMES]
    assert service.streams == ["named"]
    assert service.settings == [MeterSettings]


def test_first_request_is_that_of_the_first_component() -> None:
    request, other = ("/meters", "{}"), ("/names", "{}")
    meters = Component("meters", first_request=request)

    assert Service([Component("names"), meters]).first_request == request
    assert Service([meters, Component("names", first_request=other)]).first_request == request
    assert Service([Component("names")]).first_request is None


@asynccontextmanager
async def ticking(runtime: Runtime) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def sweeping(runtime: Runtime) -> AsyncIterator[None]:
    yield


def test_a_lifespan_runs_in_processes_of_any_of_its_roles() -> None:
    clock = Component("clock", lifespans=[({Role.API, Role.WORKER}, ticking)])
    service = Service([clock, Component("broom", lifespans=[([Role.RELAY], sweeping)])])

    assert service.lifespans({Role.API}) == [ticking]
    assert service.lifespans([Role.WORKER]) == [ticking]
    assert service.lifespans({Role.RELAY}) == [sweeping]
    assert service.lifespans(set(Role)) == [ticking, sweeping]
