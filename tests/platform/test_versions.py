"""Versions over HTTP: ETags, If-Match, and waiting."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.platform.errors import NotFound, PreconditionRequired
from app.platform.http.problems import problem_type_of
from app.platform.http.versions import (
    VersionNotReached,
    etag,
    parse_if_match,
    wait_for_version,
)


@given(st.integers(1, 2**63 - 1))
def test_an_etag_names_its_version(version: int) -> None:
    assert parse_if_match(etag(version)) == frozenset({version})


def test_if_match_may_list_several_versions() -> None:
    assert parse_if_match('"1", "3" ,"x", W/"4"') == frozenset({1, 3})


def test_a_star_matches_any_version() -> None:
    assert parse_if_match(" * ") is None


@given(st.text())
def test_other_text_matches_no_version(text: str) -> None:
    if text.strip() != "*" and '"' not in text:
        assert parse_if_match(text) == frozenset()


def test_without_if_match_the_request_is_refused() -> None:
    with pytest.raises(PreconditionRequired, match="If-Match"):
        parse_if_match(None)


class LateView:
    """A read model that shows each of `versions`, one after the other."""

    def __init__(self, *versions: int | None) -> None:
        self.versions = versions
        self.reads = 0

    async def read(self) -> int | None:
        self.reads += 1
        return self.versions[min(self.reads, len(self.versions)) - 1]

    async def wait_for(self, min_version: int | None, seconds: float = 5) -> int:
        return await wait_for_version(self.read, int, min_version, "order", 7, seconds)


async def test_without_a_version_nothing_is_waited_for() -> None:
    assert await LateView(1, 2).wait_for(None) == 1


async def test_a_missing_entity_is_not_found() -> None:
    with pytest.raises(NotFound, match="there is no order 7"):
        await LateView(None, 1).wait_for(None)


async def test_a_reader_waits_until_the_version_is_there() -> None:
    view = LateView(None, 1, 1, 2)
    assert await view.wait_for(2) == 2
    assert view.reads == 4


async def test_a_later_version_will_do() -> None:
    assert await LateView(9).wait_for(2, seconds=0) == 9


@pytest.mark.parametrize("version", [None, 1])
async def test_a_reader_gives_up_in_the_end(version: int | None) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(VersionNotReached, match="order 7 has not reached version 2") as error:
            await LateView(version).wait_for(2, seconds=0.1)
    assert problem_type_of(error.value) == "urn:problem-type:not-yet-there"


async def test_with_no_wait_one_read_decides() -> None:
    view = LateView(1, 2)
    with pytest.raises(VersionNotReached):
        await view.wait_for(2, seconds=0)
    assert view.reads == 1
