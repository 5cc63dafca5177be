"""Causation: ids and metadata of events, derived from the command."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID, uuid4, uuid5

from app.platform import tracing
from app.platform.event_store.category import Category, E, S
from app.platform.event_store.store import NewEvent

# The namespace of event ids. A repeated command derives the same ids from it.
_COMMANDS = UUID("6d1f2b0e-5a0c-4b53-9f5e-0d8a4c1b7e92")


def event_id(*parts: object) -> UUID:
    """Derive an event id from `parts`; the same parts give the same id."""
    return uuid5(_COMMANDS, "/".join(str(part) for part in parts))


def imported_events(
    category: Category[E, S], stream_id: int, history: Iterable[tuple[E, datetime]]
) -> list[NewEvent[E]]:
    """Return the events of an entity that is older than the event store, with their times."""
    return [
        NewEvent(
            event_id(category.name, stream_id, number, "import"), event, {"actor": "import"}, at
        )
        for number, (event, at) in enumerate(history)
    ]


def current_command() -> str | None:
    """Return the id of the command that is executed; None if it cannot be repeated."""
    trace = tracing.current()
    # A consumer repeats its work together with the event that it handles.
    return trace.command_id or trace.causation_id


def new_events(category: Category[E, S], subject: str, events: Sequence[E]) -> list[NewEvent[E]]:
    """Return `events`, decided by the current command on `subject`, with ids and metadata.

    A repeated command gives its events the same ids.
    """
    trace, command = tracing.current(), current_command()
    causation = {
        "correlation_id": trace.correlation_id,
        "causation_id": trace.causation_id,
        "command_id": command,
        "actor": trace.actor,
    }
    metadata = {name: value for name, value in causation.items() if value is not None}
    return [
        NewEvent(
            uuid4()
            if command is None
            else event_id(category.name, subject, category.type_of(event).name, number, command),
            event,
            metadata,
        )
        for number, event in enumerate(events)
    ]
