from datetime import UTC, datetime

from app.commands.dlq import _line, _summary, _utc
from app.kafka.dlq import DeadLetter
from app.kafka.retry import dead_letter
from app.kafka.subscription import Subscription
from tests.unit.kafka.samples import TOPIC, MeterRead, record


async def handle(event: object, uow: object) -> None: ...


BILLING = Subscription("billing", {MeterRead: handle})


def letter(error: Exception, offset: int = 0) -> DeadLetter:
    message = dead_letter(record(offset=offset), BILLING, TOPIC, 3, error)
    return DeadLetter.of(record(topic=message.topic, offset=offset, headers=message.headers))


def test_a_dead_letter_is_one_line_whatever_its_error_says() -> None:
    line = _line(letter(ValueError("first\nsecond\r\n\tthird\x1b[2J")), applied=False)

    assert len(line.splitlines()) == 1
    assert f"from={TOPIC}[0]@0 key=m-1 attempts=3" in line
    assert "ValueError: first second third" in line


def test_a_line_begins_with_the_id_that_show_takes() -> None:
    found = letter(ValueError("broken"), offset=5)

    assert _line(found, applied=False).startswith(f"{TOPIC}.billing.dlq:0:5  waiting  ")
    assert "  applied  " in _line(found, applied=True)


def test_an_endless_error_is_cut() -> None:
    assert len(_line(letter(ValueError("x" * 2000)), applied=False)) < 500


def test_what_has_no_headers_has_a_line_too() -> None:
    assert "key=none" in _line(DeadLetter.of(record(None, None)), applied=False)


def test_the_summary_counts_what_waits_and_what_was_applied() -> None:
    letters = [letter(ValueError("broken"), offset) for offset in range(3)]

    assert _summary(letters, {letters[0].identity}) == (
        "3 dead letters, 2 waiting, 1 applied since"
    )


def test_times_on_the_command_line_are_utc() -> None:
    assert _utc(datetime(2024, 5, 1)) == datetime(2024, 5, 1, tzinfo=UTC)
    assert _utc(None) is None
