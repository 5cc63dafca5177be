"""Cursors, and the fields of requests."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.orders.router import Money
from app.platform.http.schemas import MAX_ID, decode_cursor, encode_cursor
from app.posts.router import Title

MONEY: TypeAdapter[Decimal] = TypeAdapter(Money)
TITLE: TypeAdapter[str] = TypeAdapter(Title)


@given(st.integers(1, MAX_ID))
def test_a_cursor_leads_back_to_its_id(id: int) -> None:
    assert decode_cursor(encode_cursor(id)) == id


@given(st.text())
def test_an_invalid_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        decode_cursor(text)


@pytest.mark.parametrize("id", [0, -1, MAX_ID + 1])
def test_a_cursor_for_an_impossible_id_is_refused(id: int) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        decode_cursor(encode_cursor(id))


def test_a_cursor_is_opaque() -> None:
    assert "12345" not in encode_cursor(12345)


@given(st.decimals(0, Decimal("9999999999.99"), places=2))
def test_money_keeps_its_value_and_gets_two_places(value: Decimal) -> None:
    money = MONEY.validate_python(value)
    assert money == value
    assert str(money) == f"{abs(value):.2f}"


@pytest.mark.parametrize("text", ["1E+20", "1E+999999999", "NaN", "-0.01", "0.001", "Infinity"])
def test_an_invalid_amount_of_money_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        MONEY.validate_python(text)


def test_a_title_is_stripped_before_it_is_measured() -> None:
    assert TITLE.validate_python(f"  {'t' * 200}\n") == "t" * 200
    with pytest.raises(ValidationError):
        TITLE.validate_python(" \t ")
