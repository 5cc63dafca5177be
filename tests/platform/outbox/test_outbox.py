"""The parts of the outbox that need no server."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import REGISTRY, MeterRead
from spans import Spans
from typer.testing import CliRunner

from app import wiring
from app.platform import tracing
from app.platform.cli import outbox
from app.platform.config import ConfigurationError
from app.platform.http.app import create_app
from app.platform.kafka.codec import TRACEPARENT, TRACESTATE, Message, encode
from app.platform.kafka.errors import (
    BrokerUnavailable,
    MessageRejected,
    NotSent,
    SendError,
    UnknownTopic,
)
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.producer import Outcome
from app.platform.kafka.spans import batch_span, creating
from app.platform.outbox.batch import Batch, Unsendable
from app.platform.outbox.model import (
    HEADER_COLUMNS,
    OutboxRow,
    ParkedRow,
    as_message,
    as_row,
    bucket_count_of,
    bucket_of,
    bucket_range,
    order_key,
)
from app.platform.outbox.transaction import PendingRow
from app.platform.service import Role
from app.platform.tracing import Trace, bind_trace, context_of


def row(number: int, key: str = "k", topic: str = "a.b.c", attempts: int = 0) -> PendingRow:
    message = Message(topic, key.encode(), b"{}")
    return PendingRow(number, 320_000, attempts, order_key(topic, key.encode()), message)


def ids(rows: Sequence[PendingRow]) -> list[int]:
    return [row.id for row in rows]


def test_rows_of_different_keys_go_together() -> None:
    batch = Batch([row(1, "a"), row(2, "b"), row(3, "a")], 5)
    assert ids(batch.next_wave()) == [1, 2, 3]
    assert batch.next_wave() == []


def test_a_key_waits_between_topics() -> None:
    batch = Batch([row(1), row(2, topic="a.b.d"), row(3), row(4, "other", "a.b.d")], 5)
    assert ids(batch.next_wave()) == [1, 4]
    assert ids(batch.next_wave()) == [2]
    assert ids(batch.next_wave()) == [3]


def test_after_a_failure_nothing_of_that_key_is_sent() -> None:
    batch = Batch([row(1), row(2, topic="a.b.d"), row(3, "other", "a.b.d")], 5)
    batch.record(batch.next_wave(), [MessageRejected("no"), None])
    assert batch.next_wave() == []
    assert ids(batch.sent) == [3]
    assert batch.unsendable == {1: "MessageRejected: no"}


def test_only_the_first_failure_of_a_key_counts() -> None:
    batch = Batch([row(1), row(2), row(3)], 5)
    batch.record(batch.next_wave(), [MessageRejected("no"), BrokerUnavailable("held back"), None])
    assert batch.unsendable.keys() == {1}
    assert batch.outage is None
    assert ids(batch.sent) == [3]  # it is on the topic: it must not be sent again


def test_an_outage_counts_nothing_and_ends_the_batch() -> None:
    batch = Batch([row(1), row(2, topic="a.b.d")], 1)
    batch.record(batch.next_wave(), [BrokerUnavailable("away")])
    assert batch.next_wave() == []
    assert (batch.attempted, batch.unsendable, batch.made_progress) == ([], {}, False)
    assert batch.outage is not None


def test_a_refusing_topic_is_no_outage() -> None:
    batch = Batch(
        [row(1, "a"), row(2, "b", "a.b.d"), row(3, "a", "a.b.d"), row(4, "b", "a.b.d")], 1
    )
    batch.record(batch.next_wave(), [UnknownTopic("a.b.c"), None, None])
    assert batch.next_wave() == []
    assert ids(batch.sent) == [2, 4]
    assert (batch.attempted, batch.unsendable, batch.outage) == ([], {}, None)
    assert batch.failing_topics == {"a.b.c"}


def test_one_silent_topic_is_no_outage() -> None:
    batch = Batch([row(1, "a"), row(2, "b", "a.b.d")], 1)
    batch.record(batch.next_wave(), [BrokerUnavailable("late"), None])
    assert batch.outage is None
    assert batch.failing_topics == {"a.b.c"}


def test_a_row_behind_a_refused_one_is_sent_later() -> None:
    batch = Batch([row(1, "a"), row(2, "b")], 1)
    batch.record(batch.next_wave(), [MessageRejected("no"), NotSent("behind")])
    assert batch.unsendable.keys() == {1}
    assert (batch.outage, batch.failing_topics, batch.attempted) == (None, set(), [])


def test_rows_that_failed_before_go_last() -> None:
    batch = Batch([row(1, "a", attempts=1), row(2, "b"), row(3, "a"), row(4, "b", "a.b.d")], 5)
    assert ids(batch.next_wave()) == [2]
    assert ids(batch.next_wave()) == [4]
    assert ids(batch.next_wave()) == [1, 3]


def test_a_wave_that_breaks_the_client_is_sent_singly() -> None:
    batch = Batch([row(1, "a"), row(2, "b"), row(3, "a")], 2)
    batch.send_singly(batch.next_wave())
    for number, outcome in [(1, Unsendable("why")), (2, None)]:
        wave = batch.next_wave()
        assert ids(wave) == [number]
        batch.record(wave, [outcome])
    assert batch.next_wave() == []  # 3 follows 1
    assert ids(batch.attempted) == [1]


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x.y.p", "x.y.q"])), max_size=30)
OUTCOMES = st.sampled_from([None, None, None, MessageRejected("no"), UnknownTopic("where")])


@given(ROWS, st.data())
def test_a_row_waits_for_the_earlier_ones_of_its_key(
    rows: list[tuple[str, str]], data: st.DataObject
) -> None:
    pending = [row(number, key, topic) for number, (key, topic) in enumerate(rows)]
    batch = Batch(pending, 2)
    sent: set[int] = set()
    while wave := batch.next_wave():
        for one in wave:
            before = [r for r in pending if r.order_key == one.order_key and r.id < one.id]
            together = {r.id for r in wave if r.message.topic == one.message.topic}
            assert all(r.id in sent or r.id in together for r in before)
        outcomes = in_order(wave, data)
        batch.record(wave, outcomes)
        sent |= {r.id for r, outcome in zip(wave, outcomes, strict=True) if outcome is None}
    assert set(ids(batch.sent)) == sent
    assert not sent & batch.unsendable.keys()


def in_order(wave: Sequence[PendingRow], data: st.DataObject) -> list[Outcome]:
    """Draw outcomes as of a producer: after a refusal nothing of that key is sent."""
    refused: dict[object, SendError] = {}
    outcomes: list[Outcome] = []
    for one in wave:
        outcome: Outcome = refused.get(one.order_key) or data.draw(OUTCOMES)
        if outcome is not None:
            refused[one.order_key] = BrokerUnavailable("an earlier one was refused")
        outcomes.append(outcome)
    return outcomes


def test_all_topics_of_an_entity_share_a_bucket() -> None:
    read = bucket_of("shop.meter.read", b"7", 32)
    assert bucket_of("shop.meter.named", b"7", 32) == read
    assert order_key("shop.meter.read", b"7") == order_key("shop.meter.named", b"7")


def test_kinds_of_entities_do_not_share_keys() -> None:
    assert order_key("shop.meter.read", b"7") != order_key("shop.sensor.read", b"7")


def test_a_bucket_contains_the_bucket_count() -> None:
    for count in (1, 8, 32, 1024):
        bucket = bucket_of("shop.meter.read", b"7", count)
        assert bucket_count_of(bucket) == count
        first, after = bucket_range(bucket)
        assert first <= bucket < first + count <= after


def test_different_bucket_counts_share_no_bucket() -> None:
    bounds = [bucket_range(bucket_of("a.b.c", b"k", count)) for count in range(1, 1025)]
    assert all(before[1] == after[0] for before, after in pairwise(bounds))


def test_keys_are_spread_over_all_buckets() -> None:
    counts = Counter(bucket_of("a.b.c", str(n).encode(), 32) for n in range(10_000))
    assert len(counts) == 32
    assert min(counts.values()) > 200


def test_the_bucket_of_a_key_never_changes() -> None:
    # Rows of an earlier version of the service stay in their buckets.
    assert bucket_of("shop.meter.read", b"7", 32) == 320_025


EVENT = MeterRead(meter_id="m-\N{SNOWMAN}", count=1)
CONTEXT = context_of(
    [(TRACESTATE, b"vendor=value"), (TRACEPARENT, f"00-{7:032x}-{9:016x}-01".encode())]
)


def back(row: dict[str, object]) -> Message:
    """Return the message of `row`, as a relay reads it."""
    columns = tuple(row[column] for column in HEADER_COLUMNS.values())
    return as_message(row["topic"], row["key"], row["value"], json.dumps(row["headers"]), columns)  # type: ignore[arg-type]  # as_row wrote them


def test_a_message_survives_the_round_trip() -> None:
    with bind_trace(Trace("story", "cause"), CONTEXT) as trace:
        message = encode(EVENT, REGISTRY, trace)
    again = back(as_row(message, 320_000))
    assert (again.topic, again.key, again.value) == (message.topic, message.key, message.value)
    assert dict(again.headers) == dict(message.headers)


def test_a_missing_header_stays_missing() -> None:
    message = encode(EVENT, REGISTRY, Trace("story"))
    assert "causation-id" not in dict(back(as_row(message, 320_000)).headers)


def test_a_header_without_a_column_is_kept_too() -> None:
    message = Message("a.b.c", b"k", b"{}", (("x-tenant", "\N{SNOWMAN}".encode()),))
    row = as_row(message, 320_000)
    assert row["headers"] == {"x-tenant": "\N{SNOWMAN}"}
    assert back(row).headers == message.headers


async def test_a_trace_goes_on_from_the_row(spans: Spans) -> None:
    """The relay may be another process: it has only the row."""
    sent = [(TRACESTATE, b"vendor=value"), (TRACEPARENT, f"00-{7:032x}-{9:016x}-01".encode())]
    with tracing.span("request", parent=context_of(sent)), creating(EVENT, REGISTRY):
        row = as_row(encode(EVENT, REGISTRY, Trace("story")), 320_000)
    message = back(row)
    with batch_span("relay batch", [message.headers]):
        await FakeProducer().send(message)

    created, relayed = spans.named("create " + message.topic), spans.named("send " + message.topic)
    assert created.context is not None
    assert relayed.context is not None
    assert relayed.parent is not None
    assert relayed.parent.span_id == created.context.span_id
    assert row["traceparent"] == dict(message.headers)[TRACEPARENT].decode()  # type: ignore[union-attr]  # it has one
    assert relayed.context.trace_state.to_header() == "vendor=value"
    batch = spans.named("relay batch").context
    assert batch is not None
    assert [link.context.span_id for link in relayed.links] == [batch.span_id]


def test_every_header_that_differs_between_messages_has_a_column() -> None:
    # Debezium's outbox event router can make headers of columns only.
    with bind_trace(Trace("story", "cause"), CONTEXT) as trace:
        row = as_row(encode(EVENT, REGISTRY, trace), 320_000)
    assert row["headers"] == {"ce_specversion": "1.0", "content-type": "application/json"}


CONNECTOR = Path("docs/outbox-debezium.json")  # of the service that the tests run in
ROUTER = "transforms.outbox."


def settings() -> dict[str, str]:
    found: dict[str, str] = json.loads(CONNECTOR.read_text())["config"]
    return found


def test_the_router_takes_topic_key_and_value_from_our_columns() -> None:
    config = settings()
    assert config["table.include.list"] == f"public.{OutboxRow.__tablename__}"
    names = ["route.by.field", "table.field.event.key", "table.field.event.payload"]
    columns = [config[ROUTER + name] for name in names]
    assert columns == ["topic", "key", "value"]
    assert {*columns, config[ROUTER + "table.field.event.id"]} <= set(
        OutboxRow.__table__.columns.keys()
    )


def test_every_column_of_a_header_becomes_that_header() -> None:
    placed = settings()[ROUTER + "table.fields.additional.placement"].split(",")
    assert {tuple(entry.split(":")) for entry in placed} == {
        (column, "header", name) for name, column in HEADER_COLUMNS.items()
    }


def test_the_headers_that_are_always_the_same_are_inserted() -> None:
    config = settings()
    # Not by InsertHeader, which reads `1.0` as a number and sends `1`.
    assert config["transforms.specversion.static.value"] == "1.0"
    assert config["transforms.ceSpecversion.headers"] == "ce_specversion"
    assert config["transforms.contentType.header"] == "content-type"
    assert config["transforms.contentType.value.literal"] == "application/json"


def test_a_wrong_setting_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_BUCKETS", "0")
    with pytest.raises(ConfigurationError, match="OUTBOX_BUCKETS"):
        create_app(wiring.service, {Role.RELAY})


def test_a_relay_is_served_as_the_other_processes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[object] = []
    monkeypatch.setattr(outbox, "serve_as", lambda _, *how: served.extend(how))

    assert CliRunner().invoke(outbox.commands, ["relay"]).exit_code == 0
    assert served == [Role.RELAY, None, None]


def test_a_parked_event_does_not_steer_the_terminal() -> None:
    hostile = "\x1b[2J\r\n\u202e\x9b"
    parked = ParkedRow(
        id=7,
        topic="a.b.c",
        key=hostile.encode(),
        value=json.dumps({"text": hostile}).encode(),
        headers={hostile: hostile},
        reason=hostile,
        parked_at=datetime(2026, 1, 1, tzinfo=UTC),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    shown = outbox._details(parked)

    assert not {*shown} & {"\x1b", "\r", "\u202e", "\x9b"}
    assert len(shown.splitlines()) == 6
