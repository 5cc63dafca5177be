"""Messages in formats of others, as their bytes and headers are."""

import json
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AliasPath, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import from_json
from samples import EVENT_ID, MeterNamed, MeterRead, named_2, named_3, record

from app.platform.events.envelope import Decoder, Envelope, Received, event_id_of, message_id
from app.platform.events.event import BaseEvent, EventRegistry, EventTopic, EventType
from app.platform.kafka import codec as names
from app.platform.kafka.codec import Header, encode
from app.platform.kafka.debezium import DebeziumChanges, DebeziumOutbox
from app.platform.kafka.decoding import Decoded, EventDecoder
from app.platform.kafka.envelopes import CloudEvents, PlainJson
from app.platform.kafka.errors import UndecodableMessage
from app.platform.kafka.retry import dead_letter_message, delayed_message, replay_message
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.tracing import Trace, bind_trace, context_of_traceparent

TOPIC = "Meters_All.v1"
BODY = {"meter_id": "m-1", "count": 3}
BINARY: list[Header] = [
    ("ce_specversion", b"1.0"),
    ("ce_id", str(EVENT_ID).encode()),
    ("ce_source", b"/meters"),
    ("ce_type", b"com.acme.read"),
    ("ce_time", b"2024-05-01T12:00:00Z"),
    ("content-type", b"application/json"),
]
STRUCTURED = {
    "specversion": "1.0",
    "id": str(EVENT_ID),
    "source": "/meters",
    "type": "com.acme.read",
    "time": "2024-05-01T12:00:00Z",
    "data": BODY,
}
JSON_TYPE: list[Header] = [("content-type", b"application/cloudevents+json; charset=utf-8")]


def registry(decoder: Decoder, *more: EventType) -> EventRegistry:
    topic = EventTopic(TOPIC, decoder)
    events = [EventType(MeterRead, service="meters", topic=topic, type="com.acme.read"), *more]
    return EventRegistry("shop", events)


def read(decoder: Decoder, value: object, headers: Sequence[Header] = (), **at: Any) -> Decoded:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    found = EventDecoder(registry(decoder)).decode(
        record(text, topic=TOPIC, headers=headers, **at), TOPIC
    )
    assert found is not None
    return found


def refused(decoder: Decoder, value: object, headers: Sequence[Header] = ()) -> str:
    with pytest.raises(UndecodableMessage) as caught:
        read(decoder, value, headers)
    return str(caught.value)


def without(headers: Sequence[Header], name: str) -> list[Header]:
    return [header for header in headers if header[0] != name]


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (BODY, BINARY),
        (BODY, [*BINARY[:5], ("content-type", b"application/vnd.acme+json; charset=utf-8")]),
        (BODY, BINARY[:5]),  # without a content type, it is JSON
        (BODY | {"version": 7, "event_id": None, "timestamp": "soon", "event_type": 1}, BINARY),
        (BODY, [("ce_id", b"another"), *BINARY]),  # of repeated headers, the last one counts
        (STRUCTURED, JSON_TYPE),
        (STRUCTURED, []),
        (STRUCTURED | {"datacontenttype": "application/json"}, JSON_TYPE),
        (
            {k: v for k, v in STRUCTURED.items() if k != "data"}
            | {"data_base64": "eyJtZXRlcl9pZCI6Im0tMSIsImNvdW50IjozfQ=="},
            JSON_TYPE,
        ),
    ],
)
def test_a_cloud_event_is_read(value: dict[str, Any], headers: list[Header]) -> None:
    event = read(CloudEvents(), value, headers).event

    assert event == MeterRead(
        meter_id="m-1",
        count=3,
        event_id=EVENT_ID,
        timestamp=datetime(2024, 5, 1, 12, tzinfo=UTC),
    )


def test_a_cloud_event_is_the_same_in_both_modes() -> None:
    binary, structured = read(CloudEvents(), BODY, BINARY), read(CloudEvents(), STRUCTURED)

    assert binary == structured


@pytest.mark.parametrize(
    ("value", "headers", "words"),
    [
        (BODY, [], "no header ce_specversion, no specversion in the body"),
        (BODY, [("ce_specversion", None)], "no header ce_specversion, no specversion in the body"),
        (BODY, without(BINARY, "ce_id"), "no ce_id among the headers"),
        (BODY, [*BINARY, ("ce_id", None)], "no ce_id among the headers"),
        (BODY, [*BINARY, ("ce_source", b"")], "no ce_source among the headers"),
        (BODY, [*BINARY, ("ce_specversion", b"0.3")], "CloudEvents 0.3 is not 1.0"),
        (BODY, [*BINARY, ("ce_id", b"\xff")], "utf-8"),
        (BODY, [*BINARY, ("ce_time", b"yesterday")], "timestamp"),
        (BODY, [*BINARY, ("ce_time", b"2024-05-01T12:00:00")], "timezone"),
        (BODY, [*BINARY, ("content-type", b"application/avro")], "is application/avro, not JSON"),
        ([], BINARY, "not a JSON object but list"),
        (b"\xff", BINARY, "not JSON: "),
        (b"\0\0\0\0\1\2", [], "not a CloudEvent in binary mode, and the body is not JSON: "),
        ([STRUCTURED], [], "not a CloudEvent in binary mode, and the body is not a JSON object"),
        (
            [STRUCTURED],
            [("content-type", b"application/cloudevents-batch+json")],
            "batched mode: send each event as a message",
        ),
        (STRUCTURED | {"specversion": "0.3"}, JSON_TYPE, "CloudEvents 0.3 is not 1.0"),
        (STRUCTURED | {"id": ""}, JSON_TYPE, "no id in the body"),
        (STRUCTURED | {"source": 5}, JSON_TYPE, "no source in the body"),
        (STRUCTURED | {"data": "text"}, JSON_TYPE, "not a JSON object but str"),
        (STRUCTURED | {"data_base64": "%"}, JSON_TYPE, "CloudEvents: "),
        (STRUCTURED | {"data_base64": 5}, JSON_TYPE, "CloudEvents: "),
        (STRUCTURED | {"data": {}}, JSON_TYPE, "meter_id: Field required"),
    ],
)
def test_what_is_no_cloud_event_is_refused(
    value: object, headers: list[Header], words: str
) -> None:
    assert words in refused(CloudEvents(), value, headers)


@pytest.mark.parametrize("decoder", [DebeziumChanges(), PlainJson(id=lambda body, _: body["id"])])
def test_bytes_that_are_no_json_are_refused(decoder: Decoder) -> None:
    assert f"{type(decoder).__name__}: not JSON: expected value" in refused(decoder, b"\0\1")


@pytest.mark.parametrize(
    ("decoder", "value", "headers"),
    [
        (CloudEvents(), b"\xff", [*BINARY, ("ce_type", b"other")]),
        (CloudEvents(), b"\xff", [*BINARY, ("ce_type", b"other"), ("content-type", b"a/avro")]),
        (CloudEvents(), STRUCTURED | {"type": "other", "data": "text"}, JSON_TYPE),
        (CloudEvents(), STRUCTURED | {"type": "other", "datacontenttype": "a/b"}, JSON_TYPE),
        (DebeziumOutbox(), b"\xff", [("id", b"1"), ("eventType", b"other")]),
    ],
)
def test_the_data_of_an_unknown_type_is_not_looked_at(
    decoder: Decoder, value: object, headers: list[Header]
) -> None:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    message = record(text, topic=TOPIC, headers=headers)

    assert EventDecoder(registry(decoder)).decode(message, TOPIC) is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}}", b'{"a":1}x', b'{"a":"}', b'{"a":1,}', b"{,}", b'{"a":{}']
)
def test_fields_are_appended_to_json_objects_only(body: bytes) -> None:
    assert "not JSON" in refused(PlainJson(), body)


class Unparsed:
    """A decoder that leaves the bytes as they are."""

    def open(self, message: Received) -> Envelope:
        return Envelope(message.value, id=str(EVENT_ID))


PARTS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"1", b"null", b'"event_id"']


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(PARTS), max_size=12).map(b"".join))
def test_a_body_is_read_as_if_it_were_parsed_first(text: bytes) -> None:
    parsed = PlainJson(id=lambda *_: str(EVENT_ID))
    for body in (text, b'{"meter_id":"m-1","count":3,"note":%b}' % text):
        message = record(body, topic=TOPIC)
        found: list[Decoded | None] = []
        for decoder in (Unparsed(), parsed):
            try:
                found.append(EventDecoder(registry(decoder)).decode(message, TOPIC))
            except UndecodableMessage:
                found.append(None)
        assert found[0] == found[1]


@pytest.mark.parametrize("body", [b"{}", b" { } \n", b'{"a": "}"}'])
def test_a_body_may_lack_fields(body: bytes) -> None:
    assert "meter_id: Field required" in refused(PlainJson(), body)


class Pinged(BaseEvent):
    key_field: ClassVar[str] = "event_id"
    event_type: Literal["meter.pinged"] = "meter.pinged"


def pings(value: bytes | None, headers: Sequence[Header], **declared: Any) -> Decoded | None:
    topic = EventTopic(TOPIC, CloudEvents(), **declared)
    entry = EventType(Pinged, service="meters", topic=topic, type="com.acme.read")
    decoder = EventDecoder(EventRegistry("shop", [entry]), [Pinged])
    message = record(value, topic=TOPIC, headers=headers)
    found = decoder.decode(message, TOPIC)
    assert found is None or decoder.identify(message, TOPIC) == found.id
    return found


def test_a_cloud_event_without_data_is_read() -> None:
    structured = {name: value for name, value in STRUCTURED.items() if name != "data"}
    expected = pings(json.dumps(structured).encode(), JSON_TYPE)

    assert expected is not None
    assert pings(None, BINARY) == pings(b"", BINARY[:5]) == expected
    for key in (b"k", None):
        failed = record(None, key, topic=TOPIC, headers=BINARY)
        billing = Subscription("billing", {Pinged: handle})
        later = delayed_message(failed, billing, TOPIC, timedelta(seconds=5), 1, ValueError("no"))
        assert (later.value is None) == (key is not None), "the client refuses both without"
    assert pings(None, without(BINARY, "ce_id")) is None, "a tombstone"
    assert pings(None, BINARY, compacted=True) is None, "a tombstone"


def test_one_id_from_two_sources_is_two_events() -> None:
    first = read(CloudEvents(), STRUCTURED)
    second = read(CloudEvents(), STRUCTURED | {"source": "/others"})

    assert first.event.event_id == second.event.event_id == EVENT_ID
    assert first.id != second.id


def test_an_id_that_is_no_uuid_makes_one() -> None:
    first = read(CloudEvents(), STRUCTURED | {"id": "A-1"})
    again = read(CloudEvents(), STRUCTURED | {"id": "A-1"}, offset=7, partition=1)
    second = read(CloudEvents(), STRUCTURED | {"id": "A-2"})

    assert first.id == again.id == first.event.event_id
    assert second.id != first.id


def test_ids_of_messages_do_not_change_between_releases() -> None:
    """The inbox holds them for weeks."""
    at = Received("t", 1, 2, 3, None, b"")
    made = []
    for id in (str(EVENT_ID), "A-1", None):
        event_id, mask = event_id_of(at, Envelope({}, id=id, source="/s"))
        made.append(str(message_id(UUID(str(event_id)), mask)))

    assert made == IDS


IDS = [
    "a5678a69-b63d-29c4-4916-cc19959b2689",
    "3b36141a-16de-56bb-acae-1e337a5e17a8",
    "42fe8c52-8bda-562b-9b9d-f1f3eb1247fa",
]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=4,
)
SOURCES = st.dictionaries(
    st.sampled_from(["name", "ts_ms", "sequence", "db", "lsn", "txId", "xmin", 'é"\n'])
    | st.text(max_size=4),
    JSON_VALUES,
    max_size=6,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(SOURCES, JSON_VALUES, st.binary(max_size=4))
def test_ids_of_changes_do_not_change_between_releases(
    source: dict[str, Any], op: object, key: bytes
) -> None:
    text = json.dumps({"op": op, "source": source}, ensure_ascii=False).encode()
    body = from_json(text)  # a long fraction may be another number there
    source = body["source"]
    ignored = ["version", "connector", "name", "ts_ms", "ts_us", "ts_ns", "snapshot", "sequence"]
    position = {name: source[name] for name in sorted(source) if name not in ignored}
    if isinstance(source.get("ts_ms"), int):
        text = text.replace(b'"ts_ms"', b'"ts_us"')  # it may be no date
    found = DebeziumChanges().open(Received(TOPIC, 0, 1, 2, key, text))

    assert found.id == json.dumps([position, body["op"], key.hex()])


def test_json_without_an_envelope_is_known_by_its_position() -> None:
    first = read(PlainJson(), BODY, offset=5)

    assert first.event.timestamp == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert first.id == first.event.event_id == read(PlainJson(), BODY, offset=5).id
    others = [
        read(PlainJson(), BODY, offset=6),
        read(PlainJson(), BODY, offset=5, partition=1),
        read(PlainJson(), BODY, offset=5, timestamp=1_700_000_000_001),  # of a topic made anew
    ]
    assert len({first.id, *(other.id for other in others)}) == 4


def test_functions_find_id_type_and_time_of_plain_json() -> None:
    decoder = PlainJson(
        id=lambda body, message: f"{body['number']}-{message.header('part')}",
        type=lambda body, _: f"com.acme.{body['kind']}",
        time=lambda body, _: datetime.fromtimestamp(body["at"], UTC),
    )
    body = BODY | {"number": 4, "kind": "read", "at": 86400}
    first = read(decoder, body, [("part", b"1")])

    assert first.event.timestamp == datetime(1970, 1, 2, tzinfo=UTC)
    assert first.id == read(decoder, body, [("part", b"1")], offset=9).id
    assert first.id != read(decoder, body, [("part", b"2")]).id
    skipped = record(json.dumps(body | {"kind": "else"}).encode(), topic=TOPIC)
    assert EventDecoder(registry(decoder)).decode(skipped, TOPIC) is None
    assert "KeyError('kind')" in refused(decoder, BODY)


@pytest.mark.parametrize("value", [b"", b"\xff", b"[1]", b"5", b"null", b'{"a": 1}{'])
def test_what_is_no_json_object_is_refused(value: bytes) -> None:
    assert refused(PlainJson(), value).startswith("not ")
    decoder = PlainJson(id=lambda body, _: body["id"])
    assert refused(decoder, value).startswith("PlainJson: ")


def change(lsn: int = 1, **fields: Any) -> dict[str, Any]:
    source = {"name": "erp", "ts_ms": 86_400_000, "db": "erp", "table": "m", "lsn": lsn}
    return {"op": "c", "before": None, "after": BODY, "source": source, **BODY, **fields}


def test_a_change_of_a_row_is_known_by_its_place_in_the_log() -> None:
    first = read(DebeziumChanges(), change())

    assert first.event.timestamp == datetime(1970, 1, 2, tzinfo=UTC)
    assert first.id == read(DebeziumChanges(), change(ts_ms=99), offset=8).id  # sent again
    assert first.id == read(DebeziumChanges(), {"schema": {}, "payload": change()}).id
    assert first.id != read(DebeziumChanges(), change(lsn=2)).id
    assert first.id != read(DebeziumChanges(), change(op="d")).id
    assert first.id != read(DebeziumChanges(), change(), key=b"m-2").id
    assert "no op or no source" in refused(DebeziumChanges(), BODY)


ROUTED: list[Header] = [("id", str(EVENT_ID).encode()), ("eventType", b"com.acme.read")]


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (BODY, ROUTED),
        (json.dumps(BODY), ROUTED),
        ({"schema": {"type": "string"}, "payload": json.dumps(BODY)}, ROUTED),
        ({"payload": json.dumps(BODY), "schema": {"type": "string"}}, ROUTED),
        (BODY, [(name, b'"%b"' % (value or b"")) for name, value in ROUTED]),
    ],
)
def test_an_event_of_the_outbox_router_is_read(value: object, headers: list[Header]) -> None:
    found = read(DebeziumOutbox(), value, headers)

    assert isinstance(found.event, MeterRead)
    assert (found.event.event_id, found.event.count) == (EVENT_ID, 3)
    assert "no header id" in refused(DebeziumOutbox(), value, headers[1:])


def test_several_types_need_a_type() -> None:
    more = EventType(MeterNamed, {1: named_2, 2: named_3}, "meters", EventTopic(TOPIC, PlainJson()))
    decoder = EventDecoder(registry(PlainJson(), more))

    with pytest.raises(UndecodableMessage, match="PlainJson: the message has no type"):
        decoder.decode(record(b"{}", topic=TOPIC), TOPIC)


@dataclass(frozen=True)
class Versioned:
    """A format with versions of its own."""

    def open(self, message: Received) -> Envelope:
        return Envelope(json.loads(message.value), version=message.header("version"))


def test_a_version_of_the_envelope_is_upcast() -> None:
    topic = EventTopic(TOPIC, Versioned())
    entry = EventType(MeterNamed, {1: named_2, 2: named_3}, "meters", topic)
    decoder = EventDecoder(EventRegistry("shop", [entry]))
    value = b'{"meter_id": "m-1", "name": "Ada Lovelace"}'

    found = decoder.decode(record(value, topic=TOPIC, headers=[("version", b"1.2.0")]), TOPIC)

    assert found is not None
    assert isinstance(found.event, BaseEvent)
    assert found.event.model_dump(include={"version", "last"}) == {
        "version": "3.0.0",
        "last": "Lovelace",
    }


HOSTILE: list[Header] = [
    ("consumer", b"theirs"),
    ("a", b"1"),
    ("attempts", b"12"),
    ("a", None),
    ("origin-offset", b"99"),
    ("original-due-at", b"x"),
    ("a", b"\xff"),
]


async def handle(event: object, uow: object) -> None: ...


def test_a_failed_message_is_decoded_as_it_was_sent() -> None:
    """Through a delay, as a dead letter and as a replay: headers of the sender, and its position."""
    seen: list[Received] = []

    class Watching(PlainJson):
        def open(self, message: Received) -> Envelope:
            seen.append(message)
            return super().open(message)

    events = registry(Watching())
    first = record(
        json.dumps(BODY).encode(), b"\xfe", topic=TOPIC, partition=2, offset=7, headers=HOSTILE
    )
    billing = Subscription("billing", {MeterRead: handle})
    failed = ValueError("no")
    later = delayed_message(first, billing, TOPIC, timedelta(seconds=5), 1, failed)
    waited = record(later.value, later.key, topic=later.topic, headers=later.headers, offset=1)
    dead = dead_letter_message(waited, billing, TOPIC, 2, failed)
    letter = record(dead.value, dead.key, topic=dead.topic, headers=dead.headers, offset=1)
    again = replay_message(letter)
    replayed = record(again.value, again.key, topic=again.topic, headers=again.headers, offset=1)
    ids = [EventDecoder(events).identify(r, TOPIC) for r in (first, waited, letter, replayed)]

    assert len(set(ids)) == 1
    assert isinstance(ids[0], UUID)
    assert [list(message.headers) for message in seen] == [HOSTILE] * 4
    assert {astuple(message)[:6] for message in seen} == {
        (TOPIC, 2, 7, first.timestamp, b"\xfe", first.value)
    }
    assert names.header(letter.headers, names.CONSUMER) == "billing"


def test_the_decoder_of_the_page_reads_its_format() -> None:
    (block,) = re.findall(
        r"```python\n(# app/ledger/events\.py\n.*?)```",
        Path("docs/foreign_events.md").read_text(),
        re.DOTALL,
    )
    written: dict[str, Any] = {"__name__": "ledger"}
    exec(block, written)
    line = "4711;2024-05-01T12:00:00Z;PAID;19.90".encode("cp037")
    decoder = EventDecoder(EventRegistry("shop", written["EVENTS"]))

    found = decoder.decode(record(line, topic="LEDGER.OUT"), "LEDGER.OUT")

    assert found is not None
    assert isinstance(found.event, BaseEvent)
    assert found.event.model_dump(exclude={"event_id"}) == {
        "timestamp": datetime(2024, 5, 1, 12, tzinfo=UTC),
        "version": "1.0.0",
        "event_type": "entry.paid",
        "number": "4711",
        "amount": Decimal("19.90"),
    }
    with pytest.raises(UndecodableMessage, match="LedgerLines: not enough values"):
        decoder.decode(record(b"", topic="LEDGER.OUT"), "LEDGER.OUT")


# What is published


def test_messages_of_our_own_are_unchanged() -> None:
    """Byte by byte as they were before there were other formats."""
    event = MeterRead(
        meter_id="m-1", count=3, event_id=EVENT_ID, timestamp=datetime(2024, 5, 1, tzinfo=UTC)
    )
    registry, parent = EventRegistry("shop", [EventType(MeterRead)]), f"00-{7:032x}-{9:016x}-01"
    with bind_trace(Trace("c", "d"), context_of_traceparent(parent)):
        message = encode(event, registry, Trace("c", "d"))

    assert message == (
        "shop.meter.read",
        b"m-1",
        b'{"event_id":"6f1c9a3e-3f0b-4c55-9d3e-0a1b2c3d4e5f","timestamp":"2024-05-01T00:00:00Z",'
        b'"version":"1.0.0","event_type":"meter.read","meter_id":"m-1","count":3,"price":"0",'
        b'"level":0.0,"note":null,"tags":[]}',
        (
            ("ce_specversion", b"1.0"),
            ("ce_id", b"6f1c9a3e-3f0b-4c55-9d3e-0a1b2c3d4e5f"),
            ("ce_type", b"meter.read"),
            ("ce_source", b"/shop"),
            ("ce_time", b"2024-05-01T00:00:00+00:00"),
            ("content-type", b"application/json"),
            ("correlation-id", b"c"),
            ("causation-id", b"d"),
            ("traceparent", parent.encode()),
        ),
        False,
    )


def test_prefix_subject_and_schema_can_be_published() -> None:
    uri = "https://schemas.acme.com/{type}/{version}.json"
    entry = EventType(MeterRead, subject="meter_id", dataschema=uri, topic="{service}.meter")
    published = EventRegistry("shop", [entry], "com.acme.")
    message = encode(MeterRead(meter_id="m-1", count=3), published, Trace("c"))
    headers = dict(message.headers)

    assert headers["ce_type"] == b"com.acme.meter.read"
    assert headers["ce_subject"] == b"m-1"
    assert headers["ce_dataschema"] == b"https://schemas.acme.com/com.acme.meter.read/1.0.0.json"
    sent = record(message.value, topic="shop.meter", headers=message.headers)
    assert EventDecoder(published).decode(sent, "shop.meter") is not None
    foreign = record(
        message.value, topic=TOPIC, headers=[*message.headers, ("ce_type", b"com.acme.read")]
    )
    assert EventDecoder(registry(CloudEvents())).decode(foreign, TOPIC) is not None


@pytest.mark.parametrize(("note", "expected"), [("n", b"n"), (None, None)])
def test_a_subject_without_a_value_is_not_sent(note: str | None, expected: bytes | None) -> None:
    published = EventRegistry("shop", [EventType(MeterRead, subject="note")])
    message = encode(MeterRead(meter_id="m-1", count=3, note=note), published, Trace("c"))

    assert dict(message.headers).get("ce_subject") == expected


def test_a_prefix_is_in_reverse_dns_form() -> None:
    for wrong in ("acme", "com.acme", ".com.", "com acme."):
        with pytest.raises(ValidationError):
            KafkaSettings(kafka_ce_type_prefix=wrong, _env_file=None)
    assert KafkaSettings(kafka_ce_type_prefix="com.acme.", _env_file=None)


class Returning:
    """A decoder with a fault."""

    def __init__(self, envelope: Any) -> None:
        self._envelope = envelope

    def open(self, message: Received) -> Envelope:
        return self._envelope  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "envelope",
    [
        None,
        Envelope(BODY, type=["list"], id="1"),  # type: ignore[arg-type]
        Envelope(BODY, type="com.acme.read", id=4711),  # type: ignore[arg-type]
        Envelope(BODY, type="com.acme.read", id="\ud800"),
    ],
    ids=["no envelope", "list as type", "number as id", "surrogate as id"],
)
def test_the_fault_of_a_decoder_becomes_a_dead_letter(envelope: Any) -> None:
    assert refused(Returning(envelope), BODY).startswith("Returning: ")
    identified = EventDecoder(registry(Returning(envelope))).identify(record(b"{}"), TOPIC)
    assert identified is None or envelope.id == "1"


def test_a_number_can_be_an_id() -> None:
    decoder = PlainJson(id=lambda body, _: body["count"])

    assert read(decoder, BODY) == read(PlainJson(id=lambda body, _: str(body["count"])), BODY)


def test_rows_without_a_key_are_known_by_their_position() -> None:
    """Those of a snapshot share a position in the log."""
    change = {"op": "r", "after": {}, "source": {"name": "shop", "lsn": 7, "table": "log"}}
    value, decoder = json.dumps(change).encode(), EventDecoder(registry(DebeziumChanges()))
    rows = [record(value, None, topic=TOPIC, offset=offset) for offset in (0, 1)]

    assert len({decoder.identify(row, TOPIC) for row in rows}) == 2


def test_a_record_without_a_time_keeps_its_id() -> None:
    first = record(json.dumps(BODY).encode(), topic=TOPIC, timestamp=-1)
    billing = Subscription("billing", {MeterRead: handle})
    later = delayed_message(first, billing, TOPIC, timedelta(seconds=5), 1, ValueError("no"))
    waited = record(later.value, later.key, topic=later.topic, headers=later.headers, offset=1)
    decoder = EventDecoder(registry(PlainJson()))

    assert decoder.identify(waited, TOPIC) == decoder.identify(first, TOPIC)


class Camel(BaseEvent):
    """An event whose owner writes its fields in camel case."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)
    key_field: ClassVar[str] = "meter_id"
    event_type: Literal["meter.camel"] = "meter.camel"
    meter_id: str
    tariff: str | int = ""


@pytest.mark.parametrize("decoder", [PlainJson(), PlainJson(time=lambda *_: "2024-05-01T12:00Z")])
def test_the_envelope_counts_whatever_the_names_of_fields(decoder: Decoder) -> None:
    entry = EventType(Camel, service="meters", topic=EventTopic(TOPIC, decoder))
    theirs = {"eventId": "7", "eventType": "x", "event_id": None, "version": 3, "timestamp": "soon"}
    message = record(json.dumps(theirs | {"meterId": "m-1", "tariff": 5}).encode(), topic=TOPIC)
    events = EventDecoder(EventRegistry("shop", [entry]))

    first, again = events.decode(message, TOPIC), events.decode(message, TOPIC)

    assert first is not None
    assert again == first
    assert isinstance(first.event, Camel)
    assert (first.event.meter_id, first.event.tariff, first.event.version) == ("m-1", 5, "1.0.0")
    assert first.event.event_id == first.id == events.identify(message, TOPIC)


def test_a_field_of_every_event_has_a_name() -> None:
    class Hidden(BaseEvent):
        key_field: ClassVar[str] = "event_id"
        event_type: Literal["meter.hidden"] = "meter.hidden"
        event_id: UUID = Field(validation_alias=AliasPath("meta", "id"))

    with pytest.raises(ValueError, match="the alias of event_id is a path: use a name"):
        EventRegistry("shop", [EventType(Hidden)])
