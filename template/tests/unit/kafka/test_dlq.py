from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from aiokafka import ConsumerRecord

from app.kafka import codec as names
from app.kafka.codec import Header
from app.kafka.dlq import DeadLetter, Filter, dead_letter_topics, newest
from app.kafka.retry import dead_letter, replayed
from app.kafka.subscription import Subscription
from tests.unit.kafka.samples import (
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

OTHER_ID = UUID(int=7)


async def handle(event: object, uow: object) -> None: ...


BILLING = Subscription("billing", {MeterRead: handle})
NAMES = Subscription("names", {MeterRead: handle, MeterNamed: handle})


def letter_of(failed: ConsumerRecord, offset: int, attempts: int = 3) -> DeadLetter:
    """The dead letter that `failed` becomes, as it is read at `offset`."""
    message = dead_letter(failed, BILLING, TOPIC, attempts, ValueError("broken"))
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
    message = replayed(letter.record)
    return letter_of(
        record(message.value, message.key, topic=message.topic, headers=message.headers), offset
    )


def raw(*headers: Header, value: bytes | None = b"{}", key: bytes | None = b"k") -> DeadLetter:
    return DeadLetter.of(record(value, key, topic=f"{TOPIC}.billing.dlq", headers=headers))


# Reading


def test_a_dead_letter_tells_its_way() -> None:
    letter = letter_of(record(partition=2, offset=7), offset=1)

    assert letter.id == f"{TOPIC}.billing.dlq:0:1"
    assert letter.identity == ("billing", TOPIC, 2, 7)
    assert (letter.attempts, letter.error_type, letter.error_message) == (3, "ValueError", "broken")
    assert letter.first_failed_at is not None
    assert letter.first_failed_at == letter.last_failed_at
    assert letter.first_failed_at.tzinfo is not None


def test_what_has_no_headers_can_still_be_looked_at() -> None:
    letter = raw(key=None, value=None)

    assert letter.identity == ("", "", 0, 0)
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
    both = [BILLING, NAMES]

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
            failed_again(letter, len(letters) + n) for n, letter in enumerate(newest(letters))
        ]

    assert len(letters) == 15
    assert [letter.origin_offset for letter in newest(letters)] == [0, 1, 2]


def test_the_newest_letter_of_a_message_counts() -> None:
    first = letter_of(record(), offset=0)
    again = failed_again(first, offset=5)

    assert newest([first, again]) == [again]
    assert newest([again, first]) == [again]


def test_the_newest_letter_counts_when_it_came_back_to_another_partition() -> None:
    first = letter_of(record(key=None), offset=90)
    again = raw(*first.record.headers)
    again.record.partition, again.record.offset = 1, 0
    again.record.timestamp = first.record.timestamp + 1

    assert newest([first, again]) == [again]


def test_letters_without_an_origin_are_each_counted() -> None:
    letters = [
        DeadLetter.of(record(topic=f"{TOPIC}.billing.dlq", offset=offset)) for offset in range(3)
    ]

    assert newest(letters) == letters
