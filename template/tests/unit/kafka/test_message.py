from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kafka.codec import Header, Message, header, header_number, header_time, with_headers

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


@given(HEADERS, st.none() | st.binary(), st.none() | st.binary())
def test_the_size_is_never_less_than_what_is_in_the_message(
    headers: list[Header], key: bytes | None, value: bytes | None
) -> None:
    message = Message("t", key, value, tuple(headers))

    content = [key, value, *(v for _, v in headers), *(name.encode() for name, _ in headers)]
    assert message.size >= sum(len(part or b"") for part in content)
