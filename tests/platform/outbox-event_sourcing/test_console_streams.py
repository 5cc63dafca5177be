"""Streams of events in the console: their states at any version, and what a version changed."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import pytest
from browsing import Browser, console_for
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.platform.console.access import ConsoleSettings
from app.platform.console.app import opened
from app.platform.database.engine import Database
from app.platform.event_store.category import Category, EventType
from app.platform.event_store.differences import changes
from app.platform.event_store.store import NO_STREAM, EventStore, NewEvent
from app.platform.event_store.streams import Imported, Sessions, Streams, View
from app.platform.runtime import Context
from app.platform.service import Component, Service
from tests.fixtures import settings_for

HOSTILE = "</td><script>alert(1)</script>\"'&\N{RIGHT-TO-LEFT OVERRIDE}\x1b[2J"
SHOWN = "</td><script>alert(1)</script>\"'&\\u202e\\x1b[2J"


@dataclass(frozen=True)
class Named:
    """Something got a name."""

    name: str
    secret: str = "4711"
    id: int = 7


@dataclass(frozen=True)
class Thing:
    """The last name of a thing, and how many it has had."""

    id: int
    name: str
    names: int
    secret: str = "4711"


def evolve(state: Thing | None, event: Named) -> Thing:
    return Thing(event.id, event.name, 1 if state is None else state.names + 1)


class Things(Streams):
    category = Category("thing", [EventType("thing.named", Named)], Thing, evolve)
    summary = "name"
    compared = ("name",)

    async def views(self, sessions: Sessions, above: int, below: int) -> Mapping[int, View]:
        return {}

    async def unimported(self, session: AsyncSession, limit: int) -> Sequence[Imported]:
        return []


@pytest.fixture
async def browser(database: Database, migrated_database_url: str) -> AsyncIterator[Browser]:
    service = Service([Component("things", streams=[Things()])])
    context = Context.of(service, "shop", settings_for("127.0.0.1:9", "shop"))
    settings = ConsoleSettings(console_masked_fields="secret", _env_file=None)
    app = console_for(service, context, migrated_database_url, settings)
    async with database.sessions() as session, session.begin():
        metadata = {"correlation_id": "c 1", "actor": "<b>ann</b>"}
        new = [NewEvent(uuid4(), Named(name), metadata) for name in ("first", "<i>", "third")]
        await EventStore(session, Things.category).append(7, new, NO_STREAM)
    browser = Browser(app)
    async with opened(app), browser.http:
        yield browser


async def test_streams_are_listed(browser: Browser) -> None:
    assert "thing 1" in (await browser.get("/streams")).text
    page = await browser.get("/streams/thing")
    assert "7 3 third" in page.text
    assert "third" not in (await browser.get("/streams/thing?after=7")).text


async def test_a_version_shows_its_state_and_changes(browser: Browser) -> None:
    page = await browser.get("/streams/thing/7")
    assert "State at version 3 of 3, compared with version 2" in page.text
    assert "<del>&lt;i&gt;</del> <ins>third</ins>" in page.response.text
    assert "<dt>id</dt><dd>7</dd>" in page.response.text
    first = await browser.get("/streams/thing/7?version=1")
    assert "<ins>first</ins>" in first.response.text
    assert "<del>" not in first.response.text
    both = await browser.get("/streams/thing/7?version=3&since=1")
    assert "<del>first</del> <ins>third</ins>" in both.response.text


async def test_events_lead_to_their_story(browser: Browser) -> None:
    page = await browser.get("/streams/thing/7")
    assert any(link.endswith("story?id=c%201") for link in page.links)
    assert "actor: <b>ann</b>" in page.text
    assert "4711" not in page.response.text


async def test_versions_are_compared_with_the_beginning(browser: Browser) -> None:
    page = await browser.get("/streams/thing/7?version=3&since=0")
    assert "compared with version 0" in page.text
    assert "<ins>third</ins>" in page.response.text
    assert "<del>" not in page.response.text


async def test_a_stream_that_cannot_be_read_is_named(browser: Browser, database: Database) -> None:
    async with database.sessions() as session, session.begin():
        new = [NewEvent(uuid4(), Named("whole", id=8))]
        await EventStore(session, Things.category).append(8, new, NO_STREAM)
        await session.execute(text("SET LOCAL event_store.erasing = 'on'"))
        await session.execute(text("DELETE FROM events WHERE stream_id = 7 AND version = 2"))
    page = await browser.get("/streams/thing")
    assert "7 thing 7 has no event 2 8 1 whole" in page.text
    one = await browser.get("/streams/thing/7")
    assert (one.status, "thing 7 has no event 2" in one.text) == (409, True)


async def test_lists_mask_the_summary(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Things, "summary", "secret")
    page = await browser.get("/streams/thing")
    assert "7 3 ***" in page.text
    assert "4711" not in page.response.text


async def test_hostile_values_are_text(browser: Browser, database: Database) -> None:
    metadata = {HOSTILE: HOSTILE, "correlation_id": HOSTILE}
    async with database.sessions() as session, session.begin():
        new = [NewEvent(uuid4(), Named(name), metadata) for name in ("", HOSTILE)]
        await EventStore(session, Things.category).append(7, new, 3)
    for path in ("/streams/thing", "/streams/thing/7", "/streams/thing/7?version=4&since=5"):
        page = await browser.get(path)
        assert SHOWN in page.text
        assert page.tags.count("script") == 1
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in page.response.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/streams/other", 404),
        ("/streams/thing/8", 404),
        (f"/streams/thing/{2**63}", 404),
        ("/streams/thing/7?version=x", 400),
        ("/streams/thing?after=-1", 400),
    ],
)
async def test_what_is_not_there_is_named(browser: Browser, path: str, status: int) -> None:
    page = await browser.get(path)
    assert page.status == status


def test_fields_that_differ_have_their_old_value() -> None:
    found = list(changes({"a": 1, "b": 2, "gone": 3}, {"a": 1, "b": 4, "new": 5}))
    assert found == [("a", None, "1"), ("b", "2", "4"), ("gone", "3", None), ("new", "", "5")]
