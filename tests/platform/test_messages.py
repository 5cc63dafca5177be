"""Events as messages: headers, versions, and bytes of every kind."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, ValidationError, field_validator
from samples import (
    EVENT_ID,
    NAMED_TOPIC,
    REGISTRY,
    TOPIC,
    MeterNamed,
    MeterRead,
    body,
    meter_read,
    named_2,
    named_3,
)

from app.platform.events.envelope import Envelope
from app.platform.events.event import (
    TOPIC_MAX_LENGTH,
    VERSION_PATTERN,
    BaseEvent,
    EventRegistry,
    EventType,
    Payload,
    check_topic_name,
)
from app.platform.kafka.codec import (
    Header,
    Message,
    decode,
    decode_event,
    encode,
    header,
    header_number,
    header_time,
    trace_of,
    with_headers,
)
from app.platform.kafka.decoding import build_event
from app.platform.kafka.errors import UndecodableMessage
from app.platform.tracing import Trace, bind_trace, context_of_traceparent

HEADERS: st.SearchStrategy[list[Header]] = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.none() | st.binary(max_size=20))
)
# Any text, lone surrogates included: error messages may hold them.
TEXT = st.lists(st.characters() | st.sampled_from("\ud800\udfff")).map("".join)


def test_the_last_header_of_a_name_counts() -> None:
    assert header([("a", b"1"), ("b", b"2"), ("a", b"3")], "a") == "3"


def test_a_header_that_is_missing_or_null_is_none() -> None:
    assert header([], "a") is None
    assert header([("a", None)], "a") is None


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert header([("a", b"x\xff")], "a") == "x\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"0", 0),
        (b"42", 42),
        (b"", 0),
        (b"-1", 0),
        (b"1.5", 0),
        (b"1e3", 0),
        (b"many", 0),
        (b"\xff", 0),
        ("²".encode(), 0),
        (b"9" * 5000, 0),  # more digits than int() takes
        (None, 0),
    ],
)
def test_a_number_is_read_and_everything_else_is_zero(value: bytes | None, number: int) -> None:
    assert header_number([("a", value)], "a") == number


@pytest.mark.parametrize("value", [b"", b"soon", b"\xff", b"99999-01-01", b"2024-13-01", None])
def test_what_is_no_time_is_none(value: bytes | None) -> None:
    assert header_time([("a", value)], "a") is None


def test_a_time_without_a_zone_is_utc() -> None:
    expected = datetime(2024, 5, 1, 12, tzinfo=UTC)

    assert header_time([("a", b"2024-05-01T12:00:00")], "a") == expected
    assert header_time([("a", b"2024-05-01T14:00:00+02:00")], "a") == expected


def test_the_time_farthest_away_can_be_compared() -> None:
    farthest = header_time([("a", b"9999-12-31T23:59:59-23:59")], "a")

    assert farthest is not None
    assert farthest > datetime.now(UTC)


@given(HEADERS, st.sampled_from(["a", "b"]), TEXT)
def test_a_change_replaces_all_headers_of_its_name_and_no_other(
    headers: list[Header], name: str, text: str
) -> None:
    changed = with_headers(headers, {name: text})

    assert [h for h in changed if h[0] != name] == [h for h in headers if h[0] != name]
    assert [value for other, value in changed if other == name] == [text.encode("utf-8", "replace")]


@given(HEADERS)
def test_a_change_to_none_removes(headers: list[Header]) -> None:
    assert with_headers(headers, {"a": None}) == tuple(h for h in headers if h[0] != "a")


@given(
    st.lists(st.tuples(st.text("aöß…", max_size=200), st.none() | st.binary(max_size=200))),
    st.none() | st.binary(max_size=1000),
    st.none() | st.binary(max_size=1000),
)
def test_the_size_is_at_least_that_on_the_wire(
    headers: list[Header], key: bytes | None, value: bytes | None
) -> None:
    message = Message("t", key, value, tuple(headers))
    batch = BatchBuilder(1_000_000, compression_type=0)
    batch.append(timestamp=None, key=key, value=value, headers=headers)

    assert len(batch._build()) <= message.size <= len(batch._build()) + 50


class BadlyNamed(BaseEvent):
    key_field: ClassVar[str] = "event_id"
    event_type: Literal["BadlyNamed"] = "BadlyNamed"


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        meter_read().count = 2  # type: ignore[misc]  # what mypy forbids, pydantic must too


def test_each_event_has_an_id_and_a_time_with_a_zone() -> None:
    first, second = meter_read(), meter_read()

    assert first.event_id != second.event_id
    assert first.timestamp.utcoffset() is not None


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        meter_read(timestamp=datetime(2024, 5, 1))


@pytest.mark.parametrize("version", ["1", "1.0", "01.0.0", "1.0.0-rc", "v1.0.0", "1.0.0\n", ""])
def test_a_version_is_three_numbers(version: str) -> None:
    with pytest.raises(ValidationError, match="version"):
        meter_read(version=version)


@pytest.mark.parametrize("level", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_does_not_have_are_refused(level: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        meter_read(level=level)


def test_the_key_is_the_id_of_the_entity() -> None:
    assert meter_read("m-7").key == "m-7"


def test_the_registry_knows_topics_and_events_by_each_other() -> None:
    assert REGISTRY.topic(MeterRead) == TOPIC
    topic = REGISTRY.events_on(NAMED_TOPIC)
    assert topic is not None
    found = topic.only
    assert found is not None
    assert (found.model, found.name, found.version, found.major) == (
        MeterNamed,
        "meter.named",
        "3.1.0",
        3,
    )
    assert REGISTRY.events_on("shop.meter.other") is None
    assert [entry.model for entry in REGISTRY] == [MeterRead, MeterNamed]


def test_an_event_that_is_not_registered_is_named_in_the_error() -> None:
    with pytest.raises(LookupError, match="BadlyNamed is not registered"):
        REGISTRY.topic(BadlyNamed)


def test_foreign_events_are_on_the_topics_of_their_services() -> None:
    registry = EventRegistry("billing", [EventType(MeterRead, service="shop")])

    assert registry.topic(MeterRead) == TOPIC
    assert registry.owned_topics() == []


def test_two_events_cannot_share_a_topic() -> None:
    with pytest.raises(ValueError, match=f"share the topic {TOPIC}"):
        EventRegistry("shop", [EventType(MeterRead), EventType(MeterRead)])


def test_a_version_that_no_upcaster_starts_from_is_refused() -> None:
    with pytest.raises(ValueError, match="no upcaster from version 1"):
        EventRegistry("shop", [EventType(MeterNamed, upcasters={2: named_3})])
    EventRegistry("shop", [EventType(MeterNamed, upcasters={1: named_2, 2: named_3})])


def test_an_event_type_that_gives_no_topic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"service\.entity\.action"):
        EventRegistry("shop", [EventType(BadlyNamed)])


@pytest.mark.parametrize(
    "topic",
    [
        "user.created",
        "shop.user.created.now",
        "Shop.user.created",
        "shop..created",
        "shop.user.created\n",
        "shop.user.crée",
        "-shop.user.created",
        "a.b." + "c" * TOPIC_MAX_LENGTH,
    ],
)
def test_a_topic_name_is_service_entity_action(topic: str) -> None:
    with pytest.raises(ValueError, match="is not a topic name"):
        check_topic_name(topic)


def test_the_longest_topic_name_is_taken() -> None:
    check_topic_name("a.b." + "c" * (TOPIC_MAX_LENGTH - 4))


TRACE = Trace("story", "cause")
PARENT = f"00-{'a' * 32}-{'b' * 16}-01"

offsets = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))
events = st.builds(
    MeterRead,
    event_id=st.uuids(),
    timestamp=st.datetimes(timezones=st.just(UTC) | offsets),
    version=st.sampled_from(["1.0.0", "1.7.3"]),
    meter_id=st.text(max_size=30),
    count=st.integers(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    level=st.floats(allow_nan=False, allow_infinity=False),
    note=st.none() | st.text(),
    tags=st.lists(st.text(max_size=5), max_size=4).map(tuple),
)

# Lone surrogates, too: JSON can write them.
any_text = st.lists(st.characters() | st.sampled_from("\ud800\udfff"), max_size=10).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=15,
)


def payload(**changes: Any) -> dict[str, Any]:
    """A good `meter.read`, with changes; a change to `...` leaves the field out."""
    fields = json.loads(body(meter_read(event_id=EVENT_ID))) | changes
    return {name: value for name, value in fields.items() if value is not ...}


def named(**changes: Any) -> dict[str, Any]:
    """A good `meter.named` of version 1, with changes."""
    fields = {
        "event_id": str(EVENT_ID),
        "timestamp": "2024-05-01T12:00:00Z",
        "version": "1.0.0",
        "event_type": "meter.named",
        "meter_id": "m-1",
        "name": "Ada Lovelace",
    } | changes
    return {name: value for name, value in fields.items() if value is not ...}


def decoded(fields: object, topic: str = TOPIC) -> BaseEvent:
    return decode(topic, json.dumps(fields).encode(), REGISTRY)


def refusal(value: bytes | None, topic: str = TOPIC) -> str:
    with pytest.raises(UndecodableMessage) as refused:
        decode(topic, value, REGISTRY)
    return str(refused.value)


def refusal_of(fields: object, topic: str = TOPIC) -> str:
    return refusal(json.dumps(fields).encode(), topic)


# There and back


@given(events)
def test_what_was_encoded_is_decoded_to_the_same_event(event: MeterRead) -> None:
    assert decode(TOPIC, encode(event, REGISTRY, TRACE).value, REGISTRY) == event


def test_topic_and_key_are_those_of_the_event() -> None:
    message = encode(meter_read("mètre"), REGISTRY, TRACE)

    assert message.topic == TOPIC
    assert message.key == "mètre".encode()


def test_the_headers_are_those_of_cloud_events_and_of_the_story() -> None:
    event = meter_read(event_id=EVENT_ID, timestamp=datetime(2024, 5, 1, 12, tzinfo=UTC))
    with bind_trace(TRACE, context_of_traceparent(PARENT)):
        headers = encode(event, REGISTRY, TRACE).headers

    assert {name: header(headers, name) for name, _ in headers} == {
        "ce_specversion": "1.0",
        "ce_id": str(EVENT_ID),
        "ce_type": "meter.read",
        "ce_source": "/shop",
        "ce_time": "2024-05-01T12:00:00+00:00",
        "content-type": "application/json",
        "correlation-id": "story",
        "causation-id": "cause",
        "traceparent": PARENT,
    }


def test_ids_that_are_not_known_have_no_header() -> None:
    headers = dict(encode(meter_read(), REGISTRY, Trace("story")).headers)

    assert "causation-id" not in headers
    assert "traceparent" not in headers


def test_an_event_that_is_not_registered_cannot_be_encoded() -> None:
    class Unknown(MeterRead):
        pass

    with pytest.raises(LookupError, match="Unknown is not registered"):
        encode(Unknown(meter_id="m", count=1), REGISTRY, TRACE)


def test_money_stays_exact_and_is_a_string_in_json() -> None:
    event = meter_read(price=Decimal("0.10"))

    assert json.loads(body(event))["price"] == "0.10"
    assert str(decode(TOPIC, body(event), REGISTRY).price) == "0.10"  # type: ignore[attr-defined]


# Any bytes decode or are undecodable, and nothing else happens


def try_to_decode(value: bytes | None, topic: str) -> None:
    try:
        event = decode(topic, value, REGISTRY)
    except UndecodableMessage:
        return
    # What handlers are given can be published again, and keyed.
    assert decode(topic, body(event), REGISTRY) == event
    assert event.key.encode().decode() == event.key


@given(st.none() | st.binary(), st.sampled_from([TOPIC, NAMED_TOPIC, "elsewhere"]))
@example(b"", TOPIC)
@example(b"\xff\xfe", TOPIC)
@example(b"[" * 100_000, TOPIC)
@example(b'{"a":' * 100_000, NAMED_TOPIC)
@example(b"1" * 10_000, TOPIC)
@example('{"a": 1}'.encode("utf-16"), TOPIC)
@example(b"\xef\xbb\xbf{}", TOPIC)
@example(b"NaN", TOPIC)
def test_any_bytes_decode_or_are_undecodable(value: bytes | None, topic: str) -> None:
    try_to_decode(value, topic)


@given(json_values, st.sampled_from([TOPIC, NAMED_TOPIC]))
def test_any_json_decodes_or_is_undecodable(value: Any, topic: str) -> None:
    try_to_decode(json.dumps(value).encode(), topic)


@given(st.sampled_from(list(payload())), json_values)
def test_an_event_with_any_wrong_field_is_read_or_undecodable(name: str, value: Any) -> None:
    try_to_decode(json.dumps(payload(**{name: value})).encode(), TOPIC)


@given(st.sampled_from([*named(), "first", "title"]), json_values)
def test_an_old_event_with_a_wrong_field_is_read_or_undecodable(name: str, value: Any) -> None:
    try_to_decode(json.dumps(named(**{name: value})).encode(), NAMED_TOPIC)


@given(st.data())
def test_an_event_with_any_changed_byte_is_read_or_undecodable(data: st.DataObject) -> None:
    good = bytearray(body(meter_read(note="é")))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))

    try_to_decode(bytes(good), TOPIC)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no value"),
        (b"", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"meter_id": "\\ud800"}', "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not JSON"),
        (b"[]", "not a JSON object but list"),
        (b"null", "not a JSON object but NoneType"),
        (b'"text"', "not a JSON object but str"),
    ],
)
def test_the_error_says_what_is_wrong_with_the_bytes(value: bytes | None, reason: str) -> None:
    assert reason in refusal(value)


def test_a_topic_without_an_event_is_undecodable() -> None:
    assert "no event is registered for the topic shop.other.thing" in refusal(
        b"{}", "shop.other.thing"
    )


def test_an_event_of_another_type_is_undecodable() -> None:
    assert "event_type" in refusal_of(payload(event_type="meter.lost"))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"count": 1.5}, "count"),
        ({"count": "many"}, "count"),
        ({"count": None}, "count"),
        ({"count": ...}, "count"),
        ({"price": float("nan")}, "price"),
        ({"price": float("inf")}, "price"),
        ({"level": float("nan")}, "level"),
        ({"level": float("-inf")}, "level"),
        ({"meter_id": 7}, "meter_id"),
        ({"tags": ["a", 1]}, "tags.1"),
        ({"event_id": "not-a-uuid"}, "event_id"),
        ({"event_id": None}, "event_id"),
        ({"timestamp": "2024-05-01T12:00:00"}, "timestamp"),
        ({"timestamp": 1e300}, "timestamp"),
    ],
)
def test_the_error_names_the_field_that_is_wrong(changes: dict[str, Any], place: str) -> None:
    assert refusal_of(payload(**changes)).startswith(f"meter.read: {place}: ")


def test_the_error_does_not_repeat_the_value() -> None:
    assert "4111-1111" not in refusal_of(payload(count="4111-1111"))


@pytest.mark.parametrize("names", [["event_id"], ["timestamp"], ["event_id", "timestamp"]])
def test_an_event_without_an_identity_is_undecodable(names: list[str]) -> None:
    fields = payload(**dict.fromkeys(names, ...))

    assert refusal_of(fields) == f"meter.read: {' and '.join(names)} missing"


def test_a_whole_number_written_as_float_is_taken() -> None:
    event = decoded(payload(count=2.0))

    assert isinstance(event, MeterRead)
    assert event.count == 2


def test_unknown_fields_are_ignored_at_any_depth() -> None:
    deep: object = None
    for _ in range(100):
        deep = [deep]

    event = decoded(payload(later={"deep": deep}, count=5))
    assert isinstance(event, MeterRead)
    assert event.count == 5


# Versions


def test_an_event_without_a_version_is_one_of_the_first() -> None:
    assert decoded(payload(version=...)).version == "1.0.0"
    assert isinstance(decoded(named(version=...), NAMED_TOPIC), MeterNamed)


def test_a_minor_version_that_is_not_known_is_read_leniently() -> None:
    event = decoded(payload(version="1.99.0", added_later=True))

    assert isinstance(event, MeterRead)
    assert event.version == "1.99.0"


@pytest.mark.parametrize("version", ["2.0.0", "0.1.0", "-1.0.0", "999999999999.0.0"])
def test_a_major_version_that_is_not_known_is_undecodable(version: str) -> None:
    message = refusal_of(payload(version=version))

    assert message == (f"meter.read: version {version} is unknown; the newest known one is 1.0.0")


@pytest.mark.parametrize("version", ["", "one", "1..0", "1", "v1.0.0", 1, 1.0, None, [], {}, True])
def test_a_version_that_is_none_is_undecodable(version: object) -> None:
    assert "version" in refusal_of(payload(version=version))


def test_a_version_with_endless_digits_is_undecodable() -> None:
    assert "is not a version" in refusal_of(payload(version="9" * 5000 + ".0.0"))


def test_an_old_event_is_brought_up_to_date_step_by_step() -> None:
    assert decoded(named(), NAMED_TOPIC) == MeterNamed(
        event_id=EVENT_ID,
        timestamp=datetime(2024, 5, 1, 12, tzinfo=UTC),
        version="3.0.0",
        meter_id="m-1",
        first="Ada",
        last="Lovelace",
        title="none",
    )


def test_a_version_in_between_takes_the_remaining_steps_only() -> None:
    event = decoded(named(version="2.5.0", first="Ada", last="King", name=...), NAMED_TOPIC)

    assert isinstance(event, MeterNamed)
    assert (event.last, event.title) == ("King", "none")


class MeterSet(BaseEvent):
    key_field: ClassVar[str] = "meter_id"

    version: str = Field("2.0.0", pattern=VERSION_PATTERN)
    event_type: Literal["meter.set"] = "meter.set"
    meter_id: str


class StrictMeter(MeterSet):
    serial: Annotated[UUID, Field(strict=True)]


class MarkedMeter(MeterSet):
    model_config = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")
    mark: bytes


class NamedMeter(MeterSet):
    serial: UUID | str


@pytest.mark.parametrize(
    "event",
    [
        StrictMeter(meter_id="m-1", serial=EVENT_ID),
        MarkedMeter(meter_id="m-1", mark=b"\xff\x00"),
        NamedMeter(meter_id="m-1", serial=EVENT_ID),
    ],
    ids=["strict", "base64", "union"],
)
def test_an_event_is_read_alike_in_all_ways(event: MeterSet) -> None:
    entry = EventType(type(event), upcasters={1: lambda payload: payload | {"version": "2.0.0"}})
    fields = event.model_dump(mode="json")
    old = json.dumps(fields | {"version": "1.0.0"}).encode()

    assert decode_event(body(event), entry) == event
    assert decode_event(old, entry) == event
    assert (
        build_event(entry, Envelope(fields, time=event.timestamp), str(event.event_id), 0) == event
    )


def test_an_old_event_that_looks_like_a_new_one_is_still_upcast() -> None:
    fields = named(first="stale", last="stale", title="Countess")
    event = decoded(fields, NAMED_TOPIC)

    assert isinstance(event, MeterNamed)
    assert event.first == "Ada"


@pytest.mark.parametrize(
    ("name", "reason"), [(..., "KeyError"), ("Ada", "ValueError"), (7, "AttributeError")]
)
def test_an_old_event_that_no_upcaster_takes_is_undecodable(name: object, reason: str) -> None:
    message = refusal_of(named(name=name), NAMED_TOPIC)

    assert message.startswith("meter.named: upcasting from version 1 to 2 failed: ")
    assert reason in message


def registry_with(upcaster: Any) -> EventRegistry:
    return EventRegistry("shop", [EventType(MeterNamed, upcasters={1: upcaster, 2: upcaster})])


@pytest.mark.parametrize("answer", [None, 5, [], {}])
def test_an_upcaster_without_an_event_is_undecodable(answer: object) -> None:
    with pytest.raises(UndecodableMessage, match=r"meter\.named"):
        decode(NAMED_TOPIC, json.dumps(named()).encode(), registry_with(lambda _: answer))


def test_any_error_of_an_upcaster_is_undecodable() -> None:
    def endless(payload: Payload) -> Payload:
        return endless(payload)

    with pytest.raises(UndecodableMessage, match="RecursionError"):
        decode(NAMED_TOPIC, json.dumps(named()).encode(), registry_with(endless))


class Checked(BaseEvent):
    key_field: ClassVar[str] = "number"
    event_type: Literal["thing.checked"] = "thing.checked"
    number: int

    @field_validator("number")
    @classmethod
    def _divides(cls, value: int) -> int:
        return 10 // value


def test_any_error_of_a_validator_is_undecodable() -> None:
    registry = EventRegistry("shop", [EventType(Checked)])
    fields = {"event_id": str(EVENT_ID), "timestamp": "2024-05-01T12:00:00Z", "number": 0}

    with pytest.raises(UndecodableMessage, match="ZeroDivisionError"):
        decode("shop.thing.checked", json.dumps(fields).encode(), registry)


# Traces


def test_a_handler_works_in_the_same_story_caused_by_the_event() -> None:
    trace = trace_of(encode(meter_read(), REGISTRY, TRACE).headers, EVENT_ID)

    assert trace.correlation_id == "story"
    assert trace.causation_id == str(EVENT_ID)


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"a\nb", b"story\n", b"x" * 200])
def test_a_correlation_id_unfit_for_logs_is_replaced(value: bytes | None) -> None:
    trace = trace_of([("correlation-id", value)], None)

    assert len(trace.correlation_id) == 36
    assert trace.causation_id is None
