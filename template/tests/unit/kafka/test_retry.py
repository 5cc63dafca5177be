from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kafka import codec as names
from app.kafka.codec import Header, header
from app.kafka.retry import (
    ERROR_MESSAGE_LENGTH,
    attempts_so_far,
    backoff,
    dead_letter,
    delay_after,
    delayed,
    due_at,
    replayed,
    stages,
)
from app.kafka.subscription import RetryPolicy, Subscription
from tests.unit.kafka.samples import TOPIC, MeterRead, record

DELAYS = [timedelta(seconds=5), timedelta(minutes=10)]
ERROR = ValueError("broken")

policies = st.builds(
    lambda initial, more, multiplier, jitter: RetryPolicy(
        initial=initial, maximum=initial + more, multiplier=multiplier, jitter=jitter
    ),
    st.floats(0, 100),
    st.floats(0, 1000),
    st.floats(1, 1000),
    st.floats(0, 1),
)
attempts = st.integers(1, 10_000)
chances = st.floats(0, 1, exclude_max=True)


async def handle(event: object, uow: object) -> None: ...


BILLING = Subscription("billing", {MeterRead: handle}, retry=RetryPolicy(retry_after=DELAYS))


@given(policies, attempts, chances)
def test_a_wait_lies_between_its_share_of_jitter_and_the_maximum(
    policy: RetryPolicy, attempt: int, chance: float
) -> None:
    longest = backoff(policy, attempt, lambda: 0.0)
    wait = backoff(policy, attempt, lambda: chance)

    assert 0 <= longest * (1 - policy.jitter) <= wait <= longest <= policy.maximum


@given(policies, attempts)
def test_waits_never_shrink_from_one_attempt_to_the_next(policy: RetryPolicy, attempt: int) -> None:
    assert backoff(policy, attempt, lambda: 0.0) <= backoff(policy, attempt + 1, lambda: 0.0)


def test_waits_grow_by_the_multiplier_up_to_the_maximum() -> None:
    policy = RetryPolicy(initial=0.5, multiplier=2, maximum=3, jitter=0)

    assert [backoff(policy, n) for n in range(1, 6)] == [0.5, 1, 2, 3, 3]


def test_jitter_shortens_a_wait_by_a_random_share() -> None:
    policy = RetryPolicy(initial=1, maximum=1, jitter=0.5)

    assert backoff(policy, 1, lambda: 0.5) == 0.75
    assert len({backoff(policy, 1) for _ in range(20)}) > 1


def test_a_failing_message_passes_its_delays_in_order_and_then_has_none_left() -> None:
    topic, first, second = stages(BILLING, TOPIC)

    assert delay_after(BILLING, TOPIC, topic) == DELAYS[0]
    assert delay_after(BILLING, TOPIC, first) == DELAYS[1]
    assert delay_after(BILLING, TOPIC, second) is None


def test_a_replayed_message_begins_with_the_first_delay() -> None:
    assert delay_after(BILLING, TOPIC, f"{TOPIC}.billing.replay") == DELAYS[0]


def test_without_delays_a_message_goes_to_the_dead_letters_at_once() -> None:
    assert delay_after(Subscription("billing", {MeterRead: handle}), TOPIC, TOPIC) is None


def test_a_delayed_message_is_due_after_the_delay() -> None:
    before = datetime.now(UTC)
    message = delayed(record(), BILLING, TOPIC, DELAYS[0], 3, ERROR)
    due = due_at(record(topic=message.topic, headers=message.headers))

    assert message.topic == f"{TOPIC}.billing.retry.5s"
    assert due is not None
    assert before + DELAYS[0] <= due <= datetime.now(UTC) + DELAYS[0]


def test_a_dead_letter_keeps_key_bytes_and_foreign_headers_and_tells_its_story() -> None:
    headers: list[Header] = [("ce_id", b"1"), ("raw", b"\xff\x00"), ("empty", None)]
    failed = record(b"\xff", b"\xfe", partition=2, offset=7, headers=headers)

    message = dead_letter(failed, BILLING, TOPIC, 3, ERROR)

    assert message.topic == f"{TOPIC}.billing.dlq"
    assert (message.key, message.value) == (b"\xfe", b"\xff")
    assert message.headers[:3] == tuple(headers)
    told = {name: header(message.headers, name) for name, _ in message.headers}
    assert told[names.CONSUMER] == "billing"
    assert told[names.ORIGIN_TOPIC] == TOPIC
    assert told[names.ORIGIN_PARTITION] == "2"
    assert told[names.ORIGIN_OFFSET] == "7"
    assert told[names.ORIGIN_TIMESTAMP] == str(failed.timestamp)
    assert told[names.ATTEMPTS] == "3"
    assert told[names.ERROR_TYPE] == "ValueError"
    assert told[names.ERROR_MESSAGE] == "broken"
    assert told[names.FIRST_FAILED_AT] == told[names.LAST_FAILED_AT]
    assert message.size > 0


def test_a_message_that_kafka_had_taken_once_is_marked_as_forwarded() -> None:
    assert dead_letter(record(), BILLING, TOPIC, 1, ERROR).forwarded
    assert delayed(record(), BILLING, TOPIC, DELAYS[0], 1, ERROR).forwarded


def test_origin_and_first_failure_survive_every_further_stage() -> None:
    message = delayed(record(offset=7), BILLING, TOPIC, DELAYS[0], 3, ERROR)
    again = record(topic=message.topic, offset=99, partition=1, headers=message.headers)
    last = dead_letter(again, BILLING, TOPIC, 4, TypeError("worse"))

    assert header(last.headers, names.ORIGIN_OFFSET) == "7"
    assert header(last.headers, names.ORIGIN_PARTITION) == "0"
    first_failed = header(message.headers, names.FIRST_FAILED_AT)
    assert header(last.headers, names.FIRST_FAILED_AT) == first_failed
    assert header(last.headers, names.ERROR_TYPE) == "TypeError"
    assert header(last.headers, names.DUE_AT) is None


def test_headers_that_came_with_the_message_do_not_forge_its_origin() -> None:
    forged: list[Header] = [
        (names.ORIGIN_TOPIC, b"somewhere"),
        (names.ORIGIN_OFFSET, b"1"),
        (names.FIRST_FAILED_AT, b"1970-01-01T00:00:00+00:00"),
    ]
    message = dead_letter(record(offset=7, headers=forged), BILLING, TOPIC, 1, ERROR)

    assert header(message.headers, names.ORIGIN_TOPIC) == TOPIC
    assert header(message.headers, names.ORIGIN_OFFSET) == "7"
    assert header(message.headers, names.FIRST_FAILED_AT) != "1970-01-01T00:00:00+00:00"


def test_lone_surrogates_and_endless_texts_in_an_error_do_not_stop_it() -> None:
    error = ValueError("\ud800" + "x" * 100_000)
    message = dead_letter(record(), BILLING, TOPIC, 1, error)

    assert header(message.headers, names.ERROR_MESSAGE) == "?" + "x" * (ERROR_MESSAGE_LENGTH - 1)


def test_a_replayed_letter_goes_to_its_consumer_only_with_its_event_and_a_new_count() -> None:
    letter = dead_letter(record(b"body", headers=[("ce_id", b"1")]), BILLING, TOPIC, 3, ERROR)
    message = replayed(record(b"body", topic=letter.topic, headers=letter.headers))

    assert message.topic == f"{TOPIC}.billing.replay"
    assert (message.key, message.value) == (b"m-1", b"body")
    assert header(message.headers, "ce_id") == "1"
    assert header(message.headers, names.ATTEMPTS) is None
    assert header(message.headers, names.REPLAYED_AT) is not None


@pytest.mark.parametrize("missing", [names.ORIGIN_TOPIC, names.CONSUMER])
def test_a_letter_that_does_not_say_where_it_came_from_cannot_be_replayed(missing: str) -> None:
    letter = dead_letter(record(), BILLING, TOPIC, 3, ERROR)
    headers = [h for h in letter.headers if h[0] != missing]

    with pytest.raises(ValueError, match="no dead letter of this service"):
        replayed(record(topic=letter.topic, headers=headers))


@pytest.mark.parametrize("value", [b"0", b"", b"-3", b"x", b"\xff", b"9" * 5000, None])
def test_an_attempts_header_that_no_consumer_wrote_counts_as_none(value: bytes | None) -> None:
    assert attempts_so_far(record(headers=[(names.ATTEMPTS, value)])) == 0


def test_attempts_are_counted_over_all_topics() -> None:
    assert attempts_so_far(record()) == 0
    assert attempts_so_far(record(headers=[(names.ATTEMPTS, b"12")])) == 12


@pytest.mark.parametrize("topic", [TOPIC, f"{TOPIC}.billing.replay", f"{TOPIC}.billing.dlq"])
def test_a_due_at_header_holds_messages_on_delay_topics_only(topic: str) -> None:
    far: list[Header] = [(names.DUE_AT, b"9999-12-31T23:59:59+00:00")]

    assert due_at(record(topic=topic, headers=far)) is None
    assert due_at(record(topic=f"{TOPIC}.billing.retry.5s", headers=far)) is not None


@pytest.mark.parametrize("value", [b"", b"soon", b"\xff", b"99999-01-01T00:00:00", None])
def test_a_due_at_that_is_no_time_does_not_delay(value: bytes | None) -> None:
    delay_topic = f"{TOPIC}.billing.retry.5s"

    assert due_at(record(topic=delay_topic, headers=[(names.DUE_AT, value)])) is None


def test_a_due_at_without_a_zone_is_utc() -> None:
    headers: list[Header] = [(names.DUE_AT, b"2024-05-01T12:00:00")]

    due = due_at(record(topic=f"{TOPIC}.billing.retry.5s", headers=headers))
    assert due == datetime(2024, 5, 1, 12, tzinfo=UTC)
