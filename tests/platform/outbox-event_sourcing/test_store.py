"""The spans of the event store."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.trace import StatusCode
from spans import Spans

from app.platform.errors import VersionConflict
from app.platform.event_store.category import Category, EventType
from app.platform.event_store.store import EventStore, NewEvent

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Added:
    number: int


SUMS: Category[Added, int] = Category(
    "sum", [EventType("sum.added", Added)], int, lambda state, event: (state or 0) + event.number
)


class Answer(list[Any]):
    """The rows that a session answers with."""

    def one_or_none(self) -> Any:
        return self[0] if self else None


class Session:
    """A session that answers each statement with the same rows."""

    def __init__(self, *rows: tuple[object, ...]) -> None:
        self._rows = rows

    async def execute(self, _statement: object, _values: object) -> Answer:
        return Answer(self._rows)


def store(*rows: tuple[object, ...]) -> EventStore[Added, int]:
    return EventStore(Session(*rows), SUMS)  # type: ignore[arg-type]  # a fake in its place


async def test_an_append_has_a_span(spans: Spans) -> None:
    await store((NOW, NOW)).append(7, [NewEvent(uuid4(), Added(1))], 0)

    appended = spans.named("append sum")
    assert dict(appended.attributes or {}) == {"app.event_store.stream_id": 7}
    assert appended.status.status_code is StatusCode.UNSET


async def test_a_refused_append_has_a_failed_span(spans: Spans) -> None:
    with pytest.raises(VersionConflict):
        await store().append(7, [NewEvent(uuid4(), Added(1))], 0)

    assert (spans.named("append sum").attributes or {})["error.type"] == "VersionConflict"


async def test_a_load_has_a_span(spans: Spans) -> None:
    loaded = await store((1, "sum.added", 1, '{"number": 3}', NOW, NOW)).load(7)

    assert loaded is not None
    assert loaded.state == 3
    assert dict(spans.named("load sum").attributes or {}) == {"app.event_store.stream_id": 7}
