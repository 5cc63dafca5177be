import json

from app.kafka.codec import Message, encode
from app.outbox.model import HEADER_COLUMNS, as_message, as_row
from app.tracing import Trace, child_of
from tests.unit.samples import REGISTRY, MeterRead

EVENT = MeterRead(meter_id="m-\N{SNOWMAN}", count=1)


def back(row: dict[str, object]) -> Message:
    """`row` as a relay reads it."""
    columns = tuple(row[column] for column in HEADER_COLUMNS.values())
    return as_message(row["topic"], row["key"], row["value"], json.dumps(row["headers"]), columns)  # type: ignore[arg-type]  # as_row wrote them


def test_a_message_comes_back_from_its_row_as_it_was() -> None:
    message = encode(EVENT, REGISTRY, Trace("story", "cause", child_of(None)))
    again = back(as_row(message, 320_000))
    assert (again.topic, again.key, again.value) == (message.topic, message.key, message.value)
    assert dict(again.headers) == dict(message.headers)


def test_a_header_that_a_message_does_not_have_stays_away() -> None:
    message = encode(EVENT, REGISTRY, Trace("story"))
    assert "causation-id" not in dict(back(as_row(message, 320_000)).headers)


def test_a_header_without_a_column_is_kept_too() -> None:
    message = Message("a.b.c", b"k", b"{}", (("x-tenant", "\N{SNOWMAN}".encode()),))
    row = as_row(message, 320_000)
    assert row["headers"] == {"x-tenant": "\N{SNOWMAN}"}
    assert back(row).headers == message.headers


def test_every_header_that_differs_between_messages_has_a_column() -> None:
    # Debezium's outbox event router can make headers of columns only.
    trace = Trace("story", "cause", child_of(None))
    row = as_row(encode(EVENT, REGISTRY, trace), 320_000)
    assert row["headers"] == {"ce_specversion": "1.0", "content-type": "application/json"}
