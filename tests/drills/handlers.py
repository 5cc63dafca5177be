"""Events and handlers of the drills. In the rendered copy this file is `app/drill.py`.

The faults are in here, and what mends them: the shipped service has no switch for either. The
environment of a process names its subscriptions, and says whether its handlers are the mended ones.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import field_validator
from sqlalchemy import text

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.event import BaseEvent, EventTopic, EventType, Payload
from app.platform.kafka.envelopes import CloudEvents
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.subscription import Handler, OverloadPolicy, RetryPolicy, Subscription
from app.platform.service import Component, Service

PACE_SECONDS = float(os.environ.get("DRILL_PACE_SECONDS", "0"))
MENDED = os.environ.get("DRILL_MENDED") == "1"
ATTEMPTS_FILE = os.environ.get("DRILL_ATTEMPTS_FILE")
CHOSEN = os.environ.get("DRILL_SUBSCRIPTIONS")

Fault = Literal["", "twice", "always", "permanent"]


class Ticked(BaseEvent):
    """A number of a key's. Its effect is one row: applied twice, it shows."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["clock.ticked"] = "clock.ticked"
    version: str = "2.0.0" if MENDED else "1.0.0"
    name: str
    number: int
    fault: Fault = ""

    @field_validator("number", mode="before")
    @classmethod
    def _as_sent_by_mistake(cls, value: Any) -> Any:
        # The mended schema also reads what the poisonous messages hold.
        return value.removeprefix("no. ") if MENDED and isinstance(value, str) else value


class Echoed(BaseEvent):
    """An event that a handler publishes."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["clock.echoed"] = "clock.echoed"
    name: str
    number: int


class HandlerFault(Exception):
    """The error of a broken handler. Nothing in it says that trying again is of no use."""


_INSERT = text(
    "INSERT INTO effects (consumer, name, number, event_id) VALUES (:consumer, :name, :number, :id)"
)

_failures: Counter[tuple[str, UUID]] = Counter()


def applying(consumer: str) -> Handler:
    """A handler that leaves its effect, and only then fails, if it shall."""

    async def apply(event: Ticked, uow: UnitOfWork) -> None:
        await uow.session.execute(_INSERT, _row(consumer, event))
        await asyncio.sleep(PACE_SECONDS)
        _fail(consumer, event)

    return apply


def applying_all(consumer: str) -> Handler:
    async def apply(events: Sequence[Ticked], uow: UnitOfWork) -> None:
        await uow.session.execute(_INSERT, [_row(consumer, event) for event in events])
        await asyncio.sleep(PACE_SECONDS * len(events))
        for event in events:
            _fail(consumer, event)

    return apply


def echoing(consumer: str) -> Handler:
    async def apply(event: Ticked, uow: UnitOfWork) -> None:
        await uow.session.execute(_INSERT, _row(consumer, event))
        await uow.events.publish(Echoed(name=event.name, number=event.number))

    return apply


def while_enabled(consumer: str) -> Handler:
    """A handler whose dependency fails for every message while the table `outage` has a row."""

    async def apply(event: Ticked, uow: UnitOfWork) -> None:
        await uow.session.execute(_INSERT, _row(consumer, event))
        if await uow.session.scalar(text("SELECT count(*) FROM outage")):
            raise HandlerFault("the dependency of this handler is away")

    return apply


def _row(consumer: str, event: Ticked) -> dict[str, object]:
    return {
        "consumer": consumer,
        "name": event.name,
        "number": event.number,
        "id": event.event_id,
    }


def _fail(consumer: str, event: Ticked) -> None:
    if not event.fault:
        return
    _note_attempt(consumer, event)
    if MENDED:
        return
    if event.fault == "permanent":
        raise PermanentError("this cannot ever work")
    _failures[consumer, event.event_id] += 1
    if event.fault == "always" or _failures[consumer, event.event_id] <= 2:
        raise HandlerFault(f"{event.fault}: {event.name} {event.number}")


def _note_attempt(consumer: str, event: Ticked) -> None:
    """Outside the transaction, which a fault rolls back."""
    if ATTEMPTS_FILE is None:
        return
    line = {"consumer": consumer, "event_id": str(event.event_id), "at": time.time()}
    with open(ATTEMPTS_FILE, "a") as file:  # noqa: PTH123  # one short write, appended as a whole
        file.write(json.dumps(line) + "\n")


def _unchanged(payload: Payload) -> Payload:
    return {**payload, "version": "2.0.0"}


def _every_way() -> list[Subscription]:
    """The ways to take a batch: in one transaction, in lanes, and by a handler for batches."""
    return [
        Subscription("single", {Ticked: applying("single")}),
        Subscription("lanes", {Ticked: applying("lanes")}, concurrency=3),
        Subscription("bulk", {Ticked: applying_all("bulk")}, batch=True),
    ]


QUICK = RetryPolicy(attempts=3, initial=0.05, maximum=0.2)
DELAYS = [timedelta(seconds=2), timedelta(seconds=4)]
# What comes back from the delay topics fails in a row. Of the last 20 messages that can be
# half, and so an overload, which has a drill of its own.
NO_OVERLOAD = OverloadPolicy(window=100)

SUBSCRIPTIONS_OF: Mapping[str, list[Subscription]] = {
    "every-way": _every_way(),
    "single": [Subscription("single", {Ticked: applying("single")})],
    "echo": [Subscription("echo", {Ticked: echoing("echo")}, concurrency=3)],
    "poison": [
        Subscription("lanes", {Ticked: applying("lanes")}, concurrency=2, retry=QUICK),
        Subscription("bulk", {Ticked: applying_all("bulk")}, batch=True, retry=QUICK),
    ],
    "retries": [
        Subscription("in-place", {Ticked: applying("in-place")}, retry=QUICK, overload=NO_OVERLOAD),
        Subscription(
            "delayed",
            {Ticked: applying("delayed")},
            retry=RetryPolicy(attempts=1, retry_after=DELAYS),
            overload=NO_OVERLOAD,
        ),
    ],
    "overload": [
        Subscription(
            "single",
            {Ticked: while_enabled("single")},
            retry=RetryPolicy(attempts=2, initial=0.02, maximum=0.05),
            overload=OverloadPolicy(window=10, probe_initial=0.5, probe_maximum=2.0, probes=100),
        )
    ],
}

TOPICS: Mapping[str, EventTopic | None] = {
    "": None,
    "shared": EventTopic("{service}.clock"),
    "cloud-events": EventTopic("{service}_Clock.v1", CloudEvents()),
}


def events_on(topic: str) -> list[EventType]:
    """The events on topics of their own, or on a shared or foreign one."""
    upcasters = {1: _unchanged} if MENDED else {}
    return [
        EventType(Ticked, upcasters, topic=TOPICS[topic]),
        EventType(Echoed, topic=TOPICS[topic]),
    ]


EVENTS = events_on(os.environ.get("DRILL_TOPIC", ""))


def wired_into(service: Service) -> Service:
    """`service` with the events of the drills; its subscriptions give way to those that are chosen."""
    own = Component(
        "drill", events=EVENTS, subscriptions=SUBSCRIPTIONS_OF[CHOSEN] if CHOSEN else ()
    )
    parts = [replace(part, subscriptions=()) if CHOSEN else part for part in service.components]
    return Service([*parts, own])
