import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import field_validator

from app.kafka.codec import decode, encode, header, trace_of
from app.kafka.errors import UndecodableMessage
from app.kafka.event import BaseEvent, EventRegistry, EventType, Payload
from app.tracing import Trace
from tests.unit.kafka.samples import (
    EVENT_ID,
    NAMED_TOPIC,
    REGISTRY,
    TOPIC,
    MeterNamed,
    MeterRead,
    body,
    meter_read,
)

TRACE = Trace("story", "cause", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")

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
        "traceparent": TRACE.traceparent,
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
def test_a_good_event_with_any_one_field_wrong_decodes_or_is_undecodable(
    name: str, value: Any
) -> None:
    try_to_decode(json.dumps(payload(**{name: value})).encode(), TOPIC)


@given(st.sampled_from([*named(), "first", "title"]), json_values)
def test_an_old_event_with_any_one_field_wrong_decodes_or_is_undecodable(
    name: str, value: Any
) -> None:
    try_to_decode(json.dumps(named(**{name: value})).encode(), NAMED_TOPIC)


@given(st.data())
def test_a_good_event_with_any_byte_changed_decodes_or_is_undecodable(data: st.DataObject) -> None:
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
def test_an_event_that_could_not_be_recognised_again_is_undecodable(names: list[str]) -> None:
    fields = payload(**dict.fromkeys(names, ...))

    assert refusal_of(fields) == f"meter.read: {' and '.join(names)} missing"


def test_a_whole_number_written_as_float_is_taken() -> None:
    event = decoded(payload(count=2.0))

    assert isinstance(event, MeterRead)
    assert event.count == 2


def test_fields_that_are_not_known_are_ignored_however_deep_they_are() -> None:
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

    assert message == (f"meter.read: version {version} is not known here; the newest is 1.0.0")


@pytest.mark.parametrize("version", ["", "one", "1..0", "1", "v1.0.0", 1, 1.0, None, [], {}, True])
def test_a_version_that_is_none_is_undecodable(version: object) -> None:
    assert "version" in refusal_of(payload(version=version))


def test_a_version_with_more_digits_than_python_reads_is_undecodable() -> None:
    assert "is no version" in refusal_of(payload(version="9" * 5000 + ".0.0"))


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


def test_an_old_event_that_looks_like_a_new_one_is_still_upcast() -> None:
    fields = named(first="stale", last="stale", title="Countess")
    event = decoded(fields, NAMED_TOPIC)

    assert isinstance(event, MeterNamed)
    assert event.first == "Ada"


@pytest.mark.parametrize(
    ("name", "reason"), [(..., "KeyError"), ("Ada", "ValueError"), (7, "AttributeError")]
)
def test_an_old_event_that_its_upcaster_cannot_take_is_undecodable(
    name: object, reason: str
) -> None:
    message = refusal_of(named(name=name), NAMED_TOPIC)

    assert message.startswith("meter.named: cannot be brought from version 1 to 2: ")
    assert reason in message


def registry_with(upcaster: Any) -> EventRegistry:
    return EventRegistry("shop", [EventType(MeterNamed, upcasters={1: upcaster, 2: upcaster})])


@pytest.mark.parametrize("answer", [None, 5, [], {}])
def test_an_upcaster_that_returns_no_event_makes_the_message_undecodable(answer: object) -> None:
    with pytest.raises(UndecodableMessage, match=r"meter\.named"):
        decode(NAMED_TOPIC, json.dumps(named()).encode(), registry_with(lambda _: answer))


def test_an_upcaster_that_fails_in_an_unusual_way_makes_the_message_undecodable() -> None:
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


def test_a_validator_that_fails_in_an_unusual_way_makes_the_message_undecodable() -> None:
    registry = EventRegistry("shop", [EventType(Checked)])
    fields = {"event_id": str(EVENT_ID), "timestamp": "2024-05-01T12:00:00Z", "number": 0}

    with pytest.raises(UndecodableMessage, match="ZeroDivisionError"):
        decode("shop.thing.checked", json.dumps(fields).encode(), registry)


# Traces


def test_a_handler_works_in_the_same_story_caused_by_the_event() -> None:
    trace = trace_of(encode(meter_read(), REGISTRY, TRACE).headers, EVENT_ID)

    assert trace.correlation_id == "story"
    assert trace.causation_id == str(EVENT_ID)
    assert trace.traceparent is not None
    assert trace.traceparent[:36] == TRACE.traceparent[:36]  # type: ignore[index]
    assert trace.traceparent != TRACE.traceparent


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"a\nb", b"story\n", b"x" * 200])
def test_a_correlation_id_that_must_not_reach_the_logs_is_replaced(value: bytes | None) -> None:
    trace = trace_of([("correlation-id", value)], None)

    assert len(trace.correlation_id) == 36
    assert trace.causation_id is None
