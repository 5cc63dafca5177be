import json

import pytest

from app.commands.events import show
from tests.unit.kafka.samples import TOPIC, record


def test_a_message_is_shown_with_its_place_its_headers_and_its_body() -> None:
    shown = show(
        record(b'{"a": "\xc3\xa9"}', b"k", partition=2, offset=7, headers=[("ce_id", b"1")])
    )

    assert shown.splitlines() == [
        f"2023-11-14T22:13:20.000+00:00  {TOPIC}[2]@7  key=k",
        "  ce_id: 1",
        "  {",
        '    "a": "é"',
        "  }",
    ]


def test_what_is_not_there_is_said() -> None:
    shown = show(record(None, None, headers=[("empty", None)]))

    assert shown.endswith("key=none\n  empty: \n  (no value)")


def test_bytes_that_are_no_text_are_shown_escaped() -> None:
    shown = show(record(b"\xff{", b"\xfe", headers=[("raw", b"\xfd")]))

    assert "key=\\xfe" in shown
    assert "raw: \\xfd" in shown
    assert shown.endswith("  \\xff{")


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 100_000,
        b"9" * 5000,
        b"NaN",
        b'"\\ud800"',
        json.dumps([[]] * 3).encode(),
        b"\xed\xa0\x80",
        b"",
    ],
)
def test_any_body_can_be_printed(value: bytes) -> None:
    assert show(record(value)).encode()


@pytest.mark.parametrize("timestamp", [-1, 0, 10**15, 10**18, -(10**18), 2**63 - 1])
def test_any_timestamp_can_be_shown(timestamp: int) -> None:
    assert TOPIC in show(record(timestamp=timestamp))
