"""Cursors, tags of versions, and waits of HTTP requests."""

import asyncio
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.orders.domain import OrderStatus
from app.orders.repository import OrderFilter, OrderView
from app.orders.router import Money, etag, versions_in
from app.orders.service import OrderReads, OrderReadSettings, VersionNotReached
from app.platform.errors import NotFound, PreconditionRequired
from app.platform.http.schemas import MAX_ID, decode_cursor, encode_cursor
from app.posts.router import Title


@given(st.integers(1, 2**31 - 1))
def test_an_etag_that_comes_back_names_its_version(version: int) -> None:
    assert versions_in(etag(version)) == frozenset({version})


def test_several_versions_may_be_expected() -> None:
    assert versions_in('"1", "3" ,"x", W/"4"') == frozenset({1, 3})


def test_a_star_expects_any_version() -> None:
    assert versions_in(" * ") is None


@given(st.text())
def test_other_text_expects_no_version(text: str) -> None:
    if text.strip() != "*" and '"' not in text:
        assert versions_in(text) == frozenset()


def test_without_if_match_the_request_is_refused() -> None:
    with pytest.raises(PreconditionRequired, match="If-Match"):
        versions_in(None)


MONEY: TypeAdapter[Decimal] = TypeAdapter(Money)
TITLE: TypeAdapter[str] = TypeAdapter(Title)


@given(st.integers(1, MAX_ID))
def test_a_cursor_leads_back_to_its_id(id: int) -> None:
    assert decode_cursor(encode_cursor(id)) == id


@given(st.text())
def test_what_is_no_cursor_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        decode_cursor(text)


@pytest.mark.parametrize("id", [0, -1, MAX_ID + 1])
def test_a_cursor_for_an_impossible_id_is_refused(id: int) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        decode_cursor(encode_cursor(id))


def test_a_cursor_does_not_show_what_it_stands_for() -> None:
    assert "12345" not in encode_cursor(12345)


@given(st.decimals(0, Decimal("9999999999.99"), places=2))
def test_money_keeps_its_value_and_gets_two_places(value: Decimal) -> None:
    money = MONEY.validate_python(value)
    assert money == value
    assert str(money) == f"{abs(value):.2f}"


@pytest.mark.parametrize("text", ["1E+20", "1E+999999999", "NaN", "-0.01", "0.001", "Infinity"])
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        MONEY.validate_python(text)


def test_a_title_is_stripped_before_it_is_measured() -> None:
    assert TITLE.validate_python(f"  {'t' * 200}\n") == "t" * 200
    with pytest.raises(ValidationError):
        TITLE.validate_python(" \t ")


class LateQueries:
    """A read side that shows order 1 in each of `versions`, one after the other."""

    def __init__(self, *versions: int | None) -> None:
        self.versions = list(versions)
        self.reads = 0

    async def get(self, order_id: int) -> OrderView | None:
        version = self.versions[min(self.reads, len(self.versions) - 1)]
        self.reads += 1
        if version is None:
            return None
        return OrderView(order_id, 7, (), Decimal(0), OrderStatus.PLACED, version)

    async def page(self, wanted: OrderFilter, before: int | None, limit: int) -> list[OrderView]:
        return []


def reads(queries: LateQueries, wait: float) -> OrderReads:
    return OrderReads(queries, OrderReadSettings(orders_min_version_wait_seconds=wait))


async def test_without_a_version_nothing_is_waited_for() -> None:
    queries = LateQueries(1, 2)
    assert (await reads(queries, wait=5).get(1)).version == 1


async def test_an_order_that_is_missing_is_not_found() -> None:
    with pytest.raises(NotFound):
        await reads(LateQueries(None), wait=5).get(1)


async def test_a_reader_waits_until_the_version_is_there() -> None:
    queries = LateQueries(None, 1, 1, 2)
    assert (await reads(queries, wait=5).get(1, min_version=2)).version == 2
    assert queries.reads == 4


async def test_a_later_version_will_do() -> None:
    assert (await reads(LateQueries(9), wait=0).get(1, min_version=2)).version == 9


@pytest.mark.parametrize("version", [None, 1])
async def test_a_reader_does_not_wait_for_ever(version: int | None) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(VersionNotReached, match="version 2"):
            await reads(LateQueries(version), wait=0.1).get(1, min_version=2)


async def test_with_no_wait_it_is_looked_once() -> None:
    queries = LateQueries(1, 2)
    with pytest.raises(VersionNotReached):
        await reads(queries, wait=0).get(1, min_version=2)
    assert queries.reads == 1
