"""Adding an event or a consumer to a slice that exists."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.platform.dev import source_edits
from app.platform.dev.errors import import_development
from app.platform.dev.scaffold import camel, export_schemas, render, undone_on_failure, write
from app.platform.dev.scaffold_fields import Field, ScaffoldRefused, checked_name, parse_fields
from app.platform.events.event import EventType
from app.platform.service import Service

_EVENT_IMPORTS = """\
from datetime import date
from decimal import Decimal
from typing import ClassVar, Literal
from uuid import UUID
from pydantic import AwareDatetime
from app.platform.events.event import BaseEvent, EventType, Id
"""
_CONSUMER_IMPORTS = """\
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription
"""


@dataclass(frozen=True)
class NewEvent:
    """An event to be declared, such as `shipment.dispatched`, in a slice."""

    name: str
    slice: str
    fields: tuple[Field, ...]
    owner: str | None
    """The service that publishes it, if that is another one."""

    @classmethod
    def parse(
        cls, name: str, slice: str | None, fields: Iterable[str], owner: str | None
    ) -> "NewEvent":
        """Raises ScaffoldRefused."""
        entity, dot, action = name.partition(".")
        if not dot:
            raise ScaffoldRefused(f"{name}: write entity.action, such as shipment.dispatched")
        checked_name(entity, name, ())
        checked_name(action, name, ())
        if owner is not None and not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", owner):
            raise ScaffoldRefused(f"--service {owner}: give the first part of the event's topic")
        plural = slice or str(import_development("inflect", "inflect").engine().plural_noun(entity))
        read = tuple(parse_fields(fields, {f"{entity}_id"}))
        return cls(name, checked_name(plural, f"--slice {plural}", ()), read, owner)

    @property
    def model(self) -> str:
        return camel(self.name.replace(".", "_"))

    @property
    def path(self) -> Path:
        return Path("app") / self.slice / "events.py"


def write_event(project: Path, event: NewEvent, service: Service) -> dict[Path, str]:
    """Declare `event` in its slice; return the paths with "wrote" or "changed".

    Raises ScaffoldRefused and ScaffoldFailed; then nothing has changed.
    """
    # By the name alone, which is also that of the file in tests/contracts.
    if event.name in {entry.name for entry in service.events}:
        raise ScaffoldRefused(f"the event {event.name} exists already: choose another name")
    definition = render(
        "event",
        model=event.model,
        name=event.name,
        entity=event.name.partition(".")[0],
        fields=event.fields,
    )
    owner = f', service="{event.owner}"' if event.owner else ""
    item = f"EventType({event.model}{owner})"
    text = _edited(project, event.path, _EVENT_IMPORTS, definition, "EVENTS", item)
    _require_listed(project, event.path, "EVENTS")
    paths = [event.path, Path("tests/contracts") / f"{event.name}.json"]
    done = {path: "changed" if (project / path).exists() else "wrote" for path in paths}
    with undone_on_failure(project, paths):
        write(project, {event.path: text})
        export_schemas(project)
    return done


@dataclass(frozen=True)
class NewConsumer:
    """A consumer to be declared in a slice, with the event that it reads."""

    name: str
    event: EventType
    slice: str

    @classmethod
    def parse(cls, name: str, event: str, slice: str | None, service: Service) -> "NewConsumer":
        """Raises ScaffoldRefused."""
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40:
            raise ScaffoldRefused(
                f"{name}: use lower-case letters and digits in words joined by single hyphens"
            )
        if name in {entry.name for entry in service.subscriptions}:
            raise ScaffoldRefused(f"the consumer {name} exists already: choose another name")
        found = [entry for entry in service.events if entry.name == event]
        if not found:
            there_are = ", ".join(sorted({entry.name for entry in service.events})) or "none"
            raise ScaffoldRefused(
                f"there is no event {event}: write it with `app new event`; there are: {there_are}"
            )
        if len(found) > 1:
            raise ScaffoldRefused(f"several services have the event {event}: write it by hand")
        return cls(name, found[0], slice or slice_of(found[0]))

    @property
    def path(self) -> Path:
        return Path("app") / self.slice / "handlers.py"

    @property
    def function(self) -> str:
        """The name of its handler."""
        return f"handle_{self.name.replace('-', '_')}"


def slice_of(event: EventType) -> str:
    """Return the slice that declares `event`."""
    return event.model.__module__.split(".")[1]


def write_consumer(project: Path, consumer: NewConsumer) -> dict[Path, str]:
    """Declare `consumer` in its slice; return the paths with "wrote" or "changed".

    Raises ScaffoldRefused and ScaffoldFailed; then nothing has changed.
    """
    model = consumer.event.model
    definition = render("consumer", function=consumer.function, model=model.__name__)
    imports = f"{_CONSUMER_IMPORTS}from {model.__module__} import {model.__name__}\n"
    handlers = "".join(["{", f"{model.__name__}: {consumer.function}", "}"])
    item = f'Subscription("{consumer.name}", {handlers})'
    text = _edited(project, consumer.path, imports, definition, "SUBSCRIPTIONS", item)
    _require_listed(project, consumer.path, "SUBSCRIPTIONS")
    _require_layer(project, consumer.slice, slice_of(consumer.event))
    done = {consumer.path: "changed" if (project / consumer.path).exists() else "wrote"}
    with undone_on_failure(project, [consumer.path]):
        write(project, {consumer.path: text})
    return done


def _edited(
    project: Path, path: Path, imports: str, definition: str, variable: str, item: str
) -> str:
    file = project / path
    if not file.parent.is_dir():
        raise ScaffoldRefused(
            f"there is no slice {file.parent.name}: name one with --slice, or write it with"
            f" `app new entity`"
        )
    empty = f'"""{path.stem.capitalize()} of the slice {file.parent.name}."""\n\n{variable} = []\n'
    source = file.read_text("utf-8") if file.is_file() else empty
    try:
        return source_edits.with_definition(source, imports, definition, variable, item)
    except source_edits.NotRecognised as error:
        raise ScaffoldRefused(f"{path.as_posix()}: {error}") from error


def _require_listed(project: Path, path: Path, variable: str) -> None:
    """Without its list in the component, what is written would not run."""
    component = path.with_name("__init__.py")
    file = project / component
    source = file.read_text("utf-8") if file.is_file() else ""
    if not source_edits.names_list(source, path.stem, variable):
        raise ScaffoldRefused(
            f"{component.as_posix()} does not name {variable}: give its Component"
            f" `{variable.lower()}={variable}`, and run this again"
        )


def _require_layer(project: Path, consumer: str, event: str) -> None:
    contracts = (project / "pyproject.toml").read_text("utf-8")
    if consumer != event and not source_edits.may_import(contracts, consumer, event):
        raise ScaffoldRefused(
            f"app.{consumer} may not import app.{event}: put it into a layer above in the first"
            " import contract of pyproject.toml, and run this again"
        )
