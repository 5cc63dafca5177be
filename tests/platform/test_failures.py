"""Retries, overload and dead letters, without a broker."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st
from samples import (
    EVENT_ID,
    NAMED_TOPIC,
    REGISTRY,
    TOPIC,
    MeterNamed,
    MeterRead,
    body,
    meter_read,
    record,
    utc,
)
from sqlalchemy.exc import DBAPIError

from app.platform.kafka import codec as names
from app.platform.kafka.codec import Header, header
from app.platform.kafka.dead_letters import (
    DeadLetter,
    Filter,
    current_letters,
    dead_letter_topics,
    is_decodable,
)
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.retry import (
    ERROR_MESSAGE_LENGTH,
    CircuitBreaker,
    dead_letter_message,
    delayed_message,
    discard_tombstone,
    due_at,
    next_delay,
    previous_attempts,
    reduced_letters,
    replay_message,
    retry_path,
)
from app.platform.kafka.subscription import OverloadPolicy, RetryPolicy, Subscription

DELAYS = [timedelta(seconds=5), timedelta(minutes=10)]
ERROR = ValueError("broken")


async def handle(event: object, uow: object) -> None: ...


BILLING = Subscription("billing", {MeterRead: handle}, retry=RetryPolicy(retry_after=DELAYS))


def test_waits_in_place_follow_the_policy() -> None:
    steady = RetryPolicy(initial=0.5, multiplier=2, maximum=3, jitter=0).backoff()
    assert [steady.next() for _ in range(5)] == [0.5, 1, 2, 3, 3]

    jittery = RetryPolicy(initial=1, maximum=1, jitter=0.5).backoff()
    assert all(0.5 <= jittery.next() <= 1 for _ in range(20))


def test_a_failing_message_passes_its_delays_in_order() -> None:
    topic, first, second = retry_path(BILLING, TOPIC)

    assert next_delay(BILLING, TOPIC, topic) == DELAYS[0]
    assert next_delay(BILLING, TOPIC, first) == DELAYS[1]
    assert next_delay(BILLING, TOPIC, second) is None


def fail_for(secret: str) -> None:
    raise ValueError(f"no room for {secret}")


def test_a_dead_letter_says_where_its_handler_failed() -> None:
    with pytest.raises(ValueError, match="no room") as raised:
        fail_for("47" + "11")
    message = dead_letter_message(record(), BILLING, TOPIC, 1, raised.value)
    traceback = header(message.headers, names.ERROR_TRACEBACK) or ""
    assert "in fail_for" in traceback
    assert "4711" not in traceback
    unraised = dead_letter_message(record(), BILLING, TOPIC, 1, ValueError("x"))
    assert header(unraised.headers, names.ERROR_TRACEBACK) is None
    replayed = dead_letter_message(record(headers=message.headers), BILLING, TOPIC, 1, ERROR)
    assert header(replayed.headers, names.ERROR_TRACEBACK) is None


def test_a_replayed_message_begins_with_the_first_delay() -> None:
    assert next_delay(BILLING, TOPIC, f"{TOPIC}.billing.replay") == DELAYS[0]


def test_without_delays_a_message_is_dead_lettered_at_once() -> None:
    assert next_delay(Subscription("billing", {MeterRead: handle}), TOPIC, TOPIC) is None


def test_a_delayed_message_is_due_after_the_delay() -> None:
    before = datetime.now(UTC)
    message = delayed_message(record(), BILLING, TOPIC, DELAYS[0], 3, ERROR)
    due = due_at(record(topic=message.topic, headers=message.headers), TOPIC)

    assert message.topic == f"{TOPIC}.billing.retry.5s"
    assert due is not None
    assert before + DELAYS[0] <= due <= datetime.now(UTC) + DELAYS[0]


def test_a_dead_letter_holds_no_values_of_a_failed_statement() -> None:
    said = Exception("no such column\nDETAIL:  (email)=(ada@example.com)")
    error = DBAPIError("UPDATE people SET email = :email", {"email": "ada@example.com"}, said)

    message = dead_letter_message(record(), BILLING, TOPIC, 1, error)

    assert header(message.headers, names.ERROR_MESSAGE) == "no such column"


def test_a_dead_letter_keeps_key_bytes_and_foreign_headers() -> None:
    headers: list[Header] = [("ce_id", b"1"), ("raw", b"\xff\x00"), ("empty", None)]
    failed = record(b"\xff", b"\xfe", partition=2, offset=7, headers=headers)

    message = dead_letter_message(failed, BILLING, TOPIC, 3, ERROR)

    assert message.topic == f"{TOPIC}.billing.dlq"
    assert (message.key, message.value) == (b"\xfe", b"\xff")
    assert message.headers[:3] == tuple(headers)
    sent = {name: header(message.headers, name) for name, _ in message.headers}
    assert sent[names.CONSUMER] == "billing"
    assert sent[names.ORIGIN_TOPIC] == TOPIC
    assert sent[names.ORIGIN_PARTITION] == "2"
    assert sent[names.ORIGIN_OFFSET] == "7"
    assert sent[names.ORIGIN_TIMESTAMP] == str(failed.timestamp)
    assert sent[names.ATTEMPTS] == "3"
    assert sent[names.ERROR_TYPE] == "ValueError"
    assert sent[names.ERROR_MESSAGE] == "broken"
    assert sent[names.FIRST_FAILED_AT] == sent[names.LAST_FAILED_AT]
    assert message.size > 0


def test_a_message_that_kafka_has_taken_counts_as_forwarded() -> None:
    assert dead_letter_message(record(), BILLING, TOPIC, 1, ERROR).forwarded
    assert delayed_message(record(), BILLING, TOPIC, DELAYS[0], 1, ERROR).forwarded


def test_origin_and_first_failure_survive_every_further_stage() -> None:
    message = delayed_message(record(offset=7), BILLING, TOPIC, DELAYS[0], 3, ERROR)
    again = record(topic=message.topic, offset=99, partition=1, headers=message.headers)
    last = dead_letter_message(again, BILLING, TOPIC, 4, TypeError("worse"))

    assert header(last.headers, names.ORIGIN_OFFSET) == "7"
    assert header(last.headers, names.ORIGIN_PARTITION) == "0"
    first_failed = header(message.headers, names.FIRST_FAILED_AT)
    assert header(last.headers, names.FIRST_FAILED_AT) == first_failed
    assert header(last.headers, names.ERROR_TYPE) == "TypeError"
    assert header(last.headers, names.DUE_AT) is None


def test_headers_of_a_message_cannot_forge_its_origin() -> None:
    forged: list[Header] = [
        (names.ORIGIN_TOPIC, b"somewhere"),
        (names.ORIGIN_OFFSET, b"1"),
        (names.FIRST_FAILED_AT, b"1970-01-01T00:00:00+00:00"),
        (names.REPLAYED_AT, b"1970-01-01T00:00:00+00:00"),
        (names.REPLAYS, b"7"),
    ]
    message = dead_letter_message(record(offset=7, headers=forged), BILLING, TOPIC, 1, ERROR)

    assert header(message.headers, names.ORIGIN_TOPIC) == TOPIC
    assert header(message.headers, names.ORIGIN_OFFSET) == "7"
    assert header(message.headers, names.FIRST_FAILED_AT) != "1970-01-01T00:00:00+00:00"
    assert header(message.headers, names.REPLAYED_AT) is None
    assert header(message.headers, names.REPLAYS) is None


def test_a_header_that_came_with_the_message_does_not_hide_it() -> None:
    forged: list[Header] = [(names.DISCARDS, b"shop.meter.read.billing.dlq:0:0")]
    message = dead_letter_message(record(headers=forged), BILLING, TOPIC, 1, ERROR)

    assert header(message.headers, names.DISCARDS) is None


def test_surrogates_and_endless_texts_in_an_error_are_logged() -> None:
    error = ValueError("\ud800" + "x" * 100_000)
    message = dead_letter_message(record(), BILLING, TOPIC, 1, error)

    assert header(message.headers, names.ERROR_MESSAGE) == "?" + "x" * (ERROR_MESSAGE_LENGTH - 1)


def test_a_replayed_letter_goes_to_its_consumer_only() -> None:
    letter = dead_letter_message(
        record(b"body", headers=[("ce_id", b"1")]), BILLING, TOPIC, 3, ERROR
    )
    message = replay_message(record(b"body", topic=letter.topic, headers=letter.headers))

    assert message.topic == f"{TOPIC}.billing.replay"
    assert (message.key, message.value) == (b"m-1", b"body")
    assert header(message.headers, "ce_id") == "1"
    assert header(message.headers, names.ATTEMPTS) == "3"
    assert header(message.headers, names.REPLAYED_AT) is not None
    assert header(message.headers, names.REPLAYS) == "1"


@pytest.mark.parametrize("missing", [names.ORIGIN_TOPIC, names.CONSUMER])
def test_a_letter_without_an_origin_cannot_be_replayed(missing: str) -> None:
    letter = dead_letter_message(record(), BILLING, TOPIC, 3, ERROR)
    headers = [h for h in letter.headers if h[0] != missing]

    with pytest.raises(ValueError, match="not a dead letter of this service"):
        replay_message(record(topic=letter.topic, headers=headers))


def test_a_letter_is_shortened_down_to_its_origin() -> None:
    headers: list[Header] = [(names.OMITTED_BYTES, b"not ours"), ("theirs", b"h" * 500)]
    letter = dead_letter_message(
        record(b"body" * 50, partition=2, offset=7, headers=headers), BILLING, TOPIC, 3, ERROR
    )
    assert header(letter.headers, names.OMITTED_BYTES) is None

    whole, no_value, no_headers, no_key = reduced_letters(letter)

    assert whole == letter
    assert (no_value.key, no_value.value) == (letter.key, b"")
    assert header(no_value.headers, "theirs") == "h" * 500
    assert header(no_headers.headers, "theirs") is None
    assert (no_headers.key, no_key.key) == (letter.key, None)
    assert whole.size > no_value.size > no_headers.size > no_key.size
    for short in (no_value, no_headers, no_key):
        assert short.topic == letter.topic
        sent = record(b"", topic=short.topic, headers=short.headers)
        assert DeadLetter.of(sent).omitted_bytes >= 150
        with pytest.raises(ValueError, match=rf"lacks .* bytes.* offset 7 of {TOPIC}\[2\]"):
            replay_message(sent)


def test_nothing_is_left_out_that_makes_a_letter_no_smaller() -> None:
    whole, *shorter = reduced_letters(dead_letter_message(record(b"v"), BILLING, TOPIC, 3, ERROR))

    assert all(letter.size < whole.size for letter in shorter)


@pytest.mark.parametrize("value", [b"0", b"", b"-3", b"x", b"\xff", b"9" * 5000, None])
def test_a_foreign_attempts_header_counts_as_none(value: bytes | None) -> None:
    assert previous_attempts(record(headers=[(names.ATTEMPTS, value)]), "another") == 0


def test_attempts_are_counted_over_all_topics() -> None:
    assert previous_attempts(record(), "another") == 0
    assert previous_attempts(record(headers=[(names.ATTEMPTS, b"12")]), "another") == 12


def test_an_attempts_header_of_the_sender_does_not_count() -> None:
    assert previous_attempts(record(headers=[(names.ATTEMPTS, b"12")]), TOPIC) == 0


@pytest.mark.parametrize("topic", [TOPIC, f"{TOPIC}.billing.replay", f"{TOPIC}.billing.dlq"])
def test_a_due_at_header_holds_messages_on_delay_topics_only(topic: str) -> None:
    far: list[Header] = [(names.DUE_AT, b"9999-12-31T23:59:59+00:00")]

    assert due_at(record(topic=topic, headers=far), TOPIC) is None
    assert due_at(record(topic=f"{TOPIC}.billing.retry.5s", headers=far), TOPIC) is not None


@pytest.mark.parametrize("value", [b"", b"soon", b"\xff", b"99999-01-01T00:00:00", None])
def test_a_due_at_that_is_no_time_does_not_delay(value: bytes | None) -> None:
    delay_topic = f"{TOPIC}.billing.retry.5s"

    assert due_at(record(topic=delay_topic, headers=[(names.DUE_AT, value)]), TOPIC) is None


def test_a_due_at_without_a_zone_is_utc() -> None:
    headers: list[Header] = [(names.DUE_AT, b"2024-05-01T12:00:00")]

    due = due_at(record(topic=f"{TOPIC}.billing.retry.5s", headers=headers), TOPIC)
    assert due == datetime(2024, 5, 1, 12, tzinfo=UTC)


POLICY = OverloadPolicy(window=4, threshold=0.5, probe_initial=1, probe_maximum=8)


def opened() -> CircuitBreaker:
    breaker = CircuitBreaker(POLICY)
    for _ in range(POLICY.window):
        breaker.failed(ERROR)
    assert breaker.is_open
    return breaker


def test_a_few_failures_do_not_open_it() -> None:
    breaker = CircuitBreaker(POLICY)

    assert [breaker.failed(ERROR) for _ in range(POLICY.window - 1)] == [False] * 3
    assert not breaker.is_open


def test_it_opens_when_the_threshold_is_reached() -> None:
    breaker = CircuitBreaker(POLICY)
    breaker.succeeded(2)

    assert not breaker.failed(ERROR)
    assert breaker.failed(ERROR)
    assert breaker.is_open
    assert breaker.share_failed == 0.5


def test_successes_push_old_failures_out_of_the_window() -> None:
    breaker = CircuitBreaker(POLICY)
    for _ in range(3):
        breaker.failed(ERROR)
    breaker.succeeded(1_000_000)

    assert breaker.share_failed == 0


def test_only_the_failure_that_opens_it_says_so() -> None:
    assert not opened().failed(ERROR)


def test_the_first_success_closes_it_and_forgets_the_failures() -> None:
    breaker = opened()

    assert breaker.succeeded()
    assert not breaker.is_open
    assert not breaker.failed(ERROR)


def test_a_success_while_it_is_closed_closes_nothing() -> None:
    assert not CircuitBreaker(POLICY).succeeded()


def test_it_tells_the_last_error() -> None:
    assert opened().last_error == "ValueError: broken"


def test_probes_come_ever_later_up_to_the_maximum() -> None:
    breaker = opened()

    assert [breaker.probe_wait() for _ in range(6)] == [1, 2, 4, 8, 8, 8]


def test_probes_begin_anew_when_it_opens_again() -> None:
    breaker = opened()
    breaker.probe_wait()
    breaker.probe_wait()
    breaker.succeeded()
    for _ in range(POLICY.window):
        breaker.failed(ERROR)

    assert breaker.probe_wait() == 1


def test_thousands_of_probes_do_not_overflow() -> None:
    breaker = opened()

    assert max(breaker.probe_wait() for _ in range(3000)) == 8


@given(
    st.integers(1, 30),
    st.floats(0.01, 1),
    st.lists(st.one_of(st.none(), st.integers(1, 50)), max_size=80),
)
def test_it_is_open_from_a_failing_window_to_the_next_success(
    window: int, threshold: float, outcomes: list[int | None]
) -> None:
    breaker = CircuitBreaker(OverloadPolicy(window=window, threshold=threshold))
    history: list[bool] = []  # what happened since it last closed; True is a failure
    is_open = False
    for successes in outcomes:
        if successes is None:
            history.append(True)
            last = history[-window:]
            is_open = is_open or (len(last) == window and sum(last) / window >= threshold)
            breaker.failed(ERROR)
        else:
            history = [] if is_open else history + [False] * successes
            is_open = False
            breaker.succeeded(successes)
        assert breaker.is_open == is_open


OTHER_ID = UUID(int=7)


PLAIN_BILLING = Subscription("billing", {MeterRead: handle})
NAMES = Subscription("names", {MeterRead: handle, MeterNamed: handle})


def letter_of(failed: ConsumerRecord, offset: int, attempts: int = 3) -> DeadLetter:
    """The dead letter that `failed` becomes, as it is read at `offset`."""
    message = dead_letter_message(failed, PLAIN_BILLING, TOPIC, attempts, ValueError("broken"))
    return DeadLetter.of(
        record(
            message.value,
            message.key,
            topic=message.topic,
            offset=offset,
            timestamp=failed.timestamp + offset,
            headers=message.headers,
        )
    )


def failed_again(letter: DeadLetter, offset: int) -> DeadLetter:
    """The dead letter that `letter` becomes when it is replayed and fails once more."""
    message = replay_message(letter.record)
    return letter_of(
        record(message.value, message.key, topic=message.topic, headers=message.headers), offset
    )


def raw(*headers: Header, value: bytes | None = b"{}", key: bytes | None = b"k") -> DeadLetter:
    return DeadLetter.of(record(value, key, topic=f"{TOPIC}.billing.dlq", headers=headers))


# Reading


def test_a_dead_letter_tells_its_way() -> None:
    letter = letter_of(record(partition=2, offset=7), offset=1)

    assert letter.id == f"{TOPIC}.billing.dlq:0:1"
    assert letter.identity[:5] == ("billing", TOPIC, 2, 7, "1700000000000")
    assert (letter.attempts, letter.error_type, letter.error_message) == (3, "ValueError", "broken")
    assert letter.first_failed_at is not None
    assert letter.first_failed_at == letter.last_failed_at
    assert letter.first_failed_at.tzinfo is not None


def test_what_has_no_headers_can_still_be_looked_at() -> None:
    letter = raw(key=None, value=None)

    assert letter.identity[:5] == ("", "", 0, 0, "")
    assert (letter.attempts, letter.error_type, letter.key) == (0, "", "")
    assert letter.last_failed_at is None
    assert letter.event_id is None


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"-1", b"many", b"9" * 5000])
def test_headers_that_are_no_numbers_read_as_zero(value: bytes | None) -> None:
    letter = raw(
        (names.ATTEMPTS, value), (names.ORIGIN_OFFSET, value), (names.ORIGIN_PARTITION, value)
    )

    assert (letter.attempts, letter.origin_offset, letter.origin_partition) == (0, 0, 0)


def test_a_key_that_is_no_utf_8_is_shown_as_well_as_can_be() -> None:
    assert raw(key=b"k\xff").key == "k\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("value", "ce_id", "expected"),
    [
        (body(meter_read(event_id=EVENT_ID)), str(OTHER_ID), EVENT_ID),
        (b'{"event_id": "nonsense"}', str(OTHER_ID), OTHER_ID),
        (b'{"event_id": 5}', str(OTHER_ID), OTHER_ID),
        (b"{}", str(OTHER_ID), OTHER_ID),
        (b"not json", str(OTHER_ID), OTHER_ID),
        (b"[" * 100_000, str(OTHER_ID), OTHER_ID),
        (b"\xff", "nonsense", None),
        (None, "", None),
    ],
)
def test_the_event_id_is_that_of_the_body_or_else_of_the_header(
    value: bytes | None, ce_id: str, expected: UUID | None
) -> None:
    assert raw((names.CE_ID, ce_id.encode()), value=value).event_id == expected


# Choosing


def test_a_filter_without_conditions_takes_everything() -> None:
    assert Filter().matches(raw())
    assert Filter().matches(letter_of(record(), offset=0))


@pytest.mark.parametrize(
    ("matching", "other"),
    [
        (Filter(consumer="billing"), Filter(consumer="names")),
        (Filter(topic=TOPIC), Filter(topic=NAMED_TOPIC)),
        (Filter(error_type="ValueError"), Filter(error_type="KeyError")),
        (Filter(error_type="valueerror"), Filter(error_type="value")),
        (Filter(key="m-1"), Filter(key="m-2")),
    ],
)
def test_a_filter_restricts_to_what_it_names(matching: Filter, other: Filter) -> None:
    letter = letter_of(record(key=b"m-1"), offset=0)

    assert matching.matches(letter)
    assert not other.matches(letter)


def test_all_conditions_of_a_filter_must_hold() -> None:
    assert not Filter(consumer="billing", key="m-2").matches(letter_of(record(), offset=0))


@pytest.mark.parametrize("written", ["2024-05-01T12:00:00+00:00", "2024-05-01T12:00:00"])
def test_a_period_takes_its_beginning_and_not_its_end(written: str) -> None:
    letter = raw((names.LAST_FAILED_AT, written.encode()))

    assert Filter(since=utc(12)).matches(letter)
    assert not Filter(since=utc(13)).matches(letter)
    assert Filter(until=utc(13)).matches(letter)
    assert not Filter(until=utc(12)).matches(letter)


def test_a_letter_without_a_time_is_in_no_period() -> None:
    assert not Filter(since=datetime.min.replace(tzinfo=UTC)).matches(raw())
    assert not Filter(until=datetime.max.replace(tzinfo=UTC) - timedelta(1)).matches(raw())


def test_only_topics_are_read_in_which_something_can_be_found() -> None:
    both = [PLAIN_BILLING, NAMES]

    assert dead_letter_topics(both, REGISTRY, Filter()) == [
        f"{TOPIC}.billing.dlq",
        f"{TOPIC}.names.dlq",
        f"{NAMED_TOPIC}.names.dlq",
    ]
    assert dead_letter_topics(both, REGISTRY, Filter(consumer="billing")) == [
        f"{TOPIC}.billing.dlq"
    ]
    assert dead_letter_topics(both, REGISTRY, Filter(topic=NAMED_TOPIC)) == [
        f"{NAMED_TOPIC}.names.dlq"
    ]


# Counting


def test_replaying_what_keeps_failing_does_not_double_it() -> None:
    letters = [letter_of(record(offset=offset), offset) for offset in range(3)]
    for _ in range(4):
        letters += [
            failed_again(letter, len(letters) + n)
            for n, letter in enumerate(current_letters(letters))
        ]

    assert len(letters) == 15
    assert [letter.origin_offset for letter in current_letters(letters)] == [0, 1, 2]


def test_the_newest_letter_of_a_message_counts() -> None:
    first = letter_of(record(), offset=0)
    again = failed_again(first, offset=5)

    assert current_letters([first, again]) == [again]
    assert current_letters([again, first]) == [again]


def test_the_newest_letter_counts_across_partitions() -> None:
    first = letter_of(record(key=None), offset=90)
    again = raw(*first.record.headers, key=None)
    again.record.partition, again.record.offset = 1, 0
    again.record.timestamp = first.record.timestamp + 1

    assert current_letters([first, again]) == [again]


@pytest.mark.parametrize(
    "second",
    [
        {"timestamp": 1_800_000_000_000},
        {"key": b"m-2"},
        {"value": b'{"count": 2}'},
        {"key": b"m-", "value": b"1{}"},
    ],
)
def test_messages_of_a_topic_made_anew_are_not_those_before(second: dict[str, Any]) -> None:
    before, after = letter_of(record(), offset=0), letter_of(record(**second), offset=1)

    assert current_letters([before, after]) == [before, after]
    assert current_letters([before, after, failed_again(after, offset=2)])[0] == before


def test_a_letter_of_an_older_version_keeps_its_identity() -> None:
    first = letter_of(record(), offset=0)
    older = [entry for entry in first.record.headers if entry[0] != names.ORIGIN_TIMESTAMP]
    first.record.headers = tuple(older)
    again = failed_again(first, offset=1)

    assert current_letters([first, again]) == [again]


def test_a_letter_that_failed_again_counts_its_replays() -> None:
    first = letter_of(record(), offset=0)
    again = failed_again(failed_again(first, offset=1), offset=2)

    assert (first.replays, again.replays) == (0, 2)
    assert again.first_failed_at == first.first_failed_at


def marker_of(letter: DeadLetter, offset: int) -> DeadLetter:
    """The marker that `app dlq discard` puts beside `letter`, as it is read at `offset`."""
    message = discard_tombstone(letter.record)
    assert message.topic == letter.record.topic
    return DeadLetter.of(
        record(
            message.value, message.key, topic=message.topic, offset=offset, headers=message.headers
        )
    )


@pytest.mark.parametrize("key", [b"m-1", None])
def test_neither_a_discarded_letter_nor_its_marker_counts(
    key: bytes | None,
) -> None:
    kept, given_up = (letter_of(record(key=key, offset=n), offset=n) for n in range(2))
    marker = marker_of(given_up, offset=2)

    assert current_letters([kept, given_up, marker]) == [kept]
    assert current_letters([marker, given_up, kept]) == [kept]  # partitions are read in any order


def test_a_new_record_at_a_discarded_offset_is_not_discarded() -> None:
    discarded_letter, other = (
        letter_of(record(timestamp=time, offset=time), offset=0) for time in (1, 2)
    )
    marker = marker_of(discarded_letter, offset=1)

    assert current_letters([discarded_letter, marker]) == []
    assert current_letters([other, marker]) == [other]


def test_a_letter_discarded_by_an_older_version_stays_discarded() -> None:
    letter = letter_of(record(), offset=0)
    marker = raw((names.DISCARDS, letter.id.encode()))

    assert current_letters([letter, marker]) == []


def test_discarding_a_letter_brings_no_earlier_one_back() -> None:
    first = letter_of(record(), offset=0)
    again = failed_again(first, offset=1)

    assert current_letters([first, again, marker_of(again, offset=2)]) == []


def test_a_discarded_letter_that_fails_again_counts_again() -> None:
    first = letter_of(record(), offset=0)
    on_its_way = failed_again(first, offset=2)

    assert current_letters([first, marker_of(first, offset=1), on_its_way]) == [on_its_way]


@pytest.mark.parametrize("value", [b"\xff", b"[]", b'{"count": "many"}'])
def test_a_letter_without_an_event_cannot_be_read(value: bytes) -> None:
    for readable in (body(meter_read()), None):  # None is a tombstone
        assert is_decodable(letter_of(record(readable), offset=0), EventDecoder(REGISTRY))
    assert not is_decodable(letter_of(record(value), offset=0), EventDecoder(REGISTRY))
    assert not is_decodable(
        raw(value=body(meter_read())), EventDecoder(REGISTRY)
    )  # it does not say whose


def test_letters_without_an_origin_are_each_counted() -> None:
    letters = [
        DeadLetter.of(record(topic=f"{TOPIC}.billing.dlq", offset=offset)) for offset in range(3)
    ]

    assert current_letters(letters) == letters
