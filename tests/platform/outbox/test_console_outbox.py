"""The outbox in the console, on a real database: the same effects as `app outbox`."""

import json
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlencode

import pytest
from browsing import Browser, Page, console_for
from sqlalchemy import text

from app import wiring
from app.platform.console.access import TOKEN, ConsoleSettings
from app.platform.console.app import opened
from app.platform.database.engine import Database
from app.platform.outbox.model import ParkedRow
from app.platform.runtime import Context
from tests.fixtures import settings_for
from tests.world import run_cli

HOSTILE = "</td><script>alert(1)</script>\"'&\N{RIGHT-TO-LEFT OVERRIDE}\x1b[2J"
SHOWN = "</td><script>alert(1)</script>\"'&\\u202e\\x1b[2J"
PARK = text("""
    INSERT INTO outbox_parked (id, held, reason, bucket, topic, key, value, headers, correlation_id)
    VALUES (:id, :held, :reason, 320001, 'shop.thing.counted', :key, '{"secret": 4711}', '{}', 'c')
""")


@pytest.fixture
async def browser(
    database: Database, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Browser]:
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)
    settings = ConsoleSettings(console_actions=True, console_masked_fields="secret", _env_file=None)
    context = Context.of(wiring.service, "shop", settings_for("127.0.0.1:9", "shop"))
    app = console_for(wiring.service, context, migrated_database_url, settings)
    browser = Browser(app)
    async with opened(app), browser.http:
        yield browser


async def park(database: Database, *ids: int, key: str = "k", held: Sequence[int] = ()) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(text("DELETE FROM outbox"))
        await connection.execute(text("DELETE FROM outbox_parked"))
        for id in ids:
            row = {"id": id, "held": id in held, "reason": HOSTILE, "key": key.encode()}
            await connection.execute(PARK, row)


async def rows(database: Database) -> tuple[list[int], list[int]]:
    """The ids in the outbox, and of parked events."""
    async with database.engine.connect() as connection:
        return (
            list(await connection.scalars(text("SELECT id FROM outbox ORDER BY id"))),
            list(await connection.scalars(text("SELECT id FROM outbox_parked ORDER BY id"))),
        )


async def test_parked_events_are_shown_with_their_reason(
    browser: Browser, database: Database
) -> None:
    await park(database, 1, 2, held=[2])
    page = await browser.get("/outbox")
    assert "parked 1 blocked by them 1" in page.text
    assert SHOWN in page.text
    one = await browser.get("/outbox/1")
    assert "4711" not in one.response.text
    assert any(link.endswith("story?id=c") for link in one.links)
    assert "waits behind another" in (await browser.get("/outbox/2")).text
    for found in (page, one):
        assert found.tags.count("script") == 1
    for missing in (3, 2**63):
        assert (await browser.get(f"/outbox/{missing}")).status == 404


@pytest.mark.parametrize("action", ["retry", "discard"])
async def test_an_action_is_that_of_the_command(
    browser: Browser, database: Database, action: str
) -> None:
    await park(database, 1, 2, 3, held=[2])
    plan = await browser.get(f"/outbox/plan?action={action}&id=1")
    job = await browser.submit(plan, "outbox/start")
    job = await browser.ended(job)
    by_console = await rows(database)
    await park(database, 1, 2, 3, held=[2])
    assert (await run_cli("outbox", action, "1")).exit_code == 0
    assert by_console == await rows(database)
    # Event 3 is parked for itself, and blocks the later ones of its key.
    assert 3 in by_console[1]
    assert "finished" in job.text


async def test_only_events_of_the_plan_are_changed(browser: Browser, database: Database) -> None:
    await park(database, 1)
    plan = await browser.get("/outbox/plan?action=discard&key=k")
    assert "Discard 1" in plan.text
    await park(database, 1, 2)
    await browser.ended(await browser.submit(plan, "outbox/start"))
    assert await rows(database) == ([], [2])


async def test_an_event_that_is_blocked_meanwhile_stays(
    browser: Browser, database: Database
) -> None:
    await park(database, 1, 2)
    plan = await browser.get("/outbox/plan?action=retry&key=k")
    await park(database, 1, 2, held=[2])
    page = await browser.submit(plan, "outbox/start")
    assert (page.status, "not parked: 2" in page.text) == (409, True)
    by_command = await run_cli("outbox", "retry", "1", "2")
    assert (by_command.exit_code, "not parked: 2" in by_command.output) == (1, True)
    assert await rows(database) == ([], [1, 2])


async def test_pages_of_parked_events_are_bounded(browser: Browser, database: Database) -> None:
    await park(database, *range(1, 206))
    page = await browser.get("/outbox?key=k")
    assert listed(page) == list(range(1, 201))
    assert "5 more. Next" in page.text
    (after,) = [link for link in page.links if link.endswith("after=200")]
    rest = await browser.get(after.removeprefix("./").removeprefix(".."))
    assert listed(rest) == list(range(201, 206))
    assert "more. Next" not in rest.text
    plan = await browser.get("/outbox/plan?action=discard")
    assert "5 more match and stay" in plan.text
    assert len(plan.form("outbox/start").fields["ids"].split()) == 200


def listed(page: Page) -> list[int]:
    """The ids of the events that a page links to."""
    ends = [link.rpartition("outbox/")[2] for link in page.links if "outbox/" in link]
    return [int(end) for end in ends if end.isdigit()]


async def test_actions_keep_the_filter_of_the_page(browser: Browser, database: Database) -> None:
    await park(database, 1, 2, 3, held=[3])
    page = await browser.get("/outbox?id=2&key=k&topic=shop.thing.counted")
    assert listed(page) == [2]
    (retry,) = [link for link in page.links if "action=retry" in link]
    plan = await browser.get(retry.removeprefix("./").removeprefix(".."))
    assert plan.form("outbox/start").fields["ids"] == "2"
    assert listed(await browser.get("/outbox?key=other")) == []


async def test_blocked_events_are_listed_without_actions(
    browser: Browser, database: Database
) -> None:
    await park(database, 1, 2, held=[2])
    page = await browser.get("/outbox?blocked=1")
    assert listed(page) == [2]
    assert not any("action=" in link for link in page.links)


async def test_hostile_values_are_text(browser: Browser, database: Database) -> None:
    await park(database, 1, key=HOSTILE)
    async with database.sessions() as session, session.begin():
        row = await session.get_one(ParkedRow, 1)
        row.topic, row.correlation_id, row.headers = HOSTILE, HOSTILE, {HOSTILE: HOSTILE}
        row.value = json.dumps({HOSTILE: HOSTILE}).encode()
    query = urlencode({"topic": HOSTILE, "key": HOSTILE})
    paths = ["/outbox/1", f"/outbox?{query}", f"/outbox/plan?action=retry&{query}"]
    for page in [await browser.get(path) for path in paths]:
        assert page.status == 200
        assert SHOWN in page.text
        assert page.tags.count("script") == 1
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in page.response.text
        assert "\x1b" not in page.response.text


async def test_unknown_actions_are_refused(browser: Browser, database: Database) -> None:
    assert (await browser.get("/outbox/plan?action=drop")).status == 400
    assert (await browser.get("/outbox?id=x")).status == 400
    await park(database, 1)
    plan = await browser.get("/outbox/plan?action=discard")
    for ids in ("", "x", "9" * 30):
        assert (await browser.submit(plan, "outbox/start", ids=ids)).status == 400
    assert await rows(database) == ([], [1])


async def test_a_read_only_console_changes_nothing(
    browser: Browser, database: Database, migrated_database_url: str
) -> None:
    await park(database, 1)
    plan = await browser.get("/outbox/plan?action=discard")
    context, settings = browser.app.state.console.context, ConsoleSettings(_env_file=None)
    app = console_for(wiring.service, context, migrated_database_url, settings)
    other = Browser(app)
    async with opened(app), other.http:
        assert (await other.get("/outbox/plan?action=discard")).forms == []
        # With a token that is right, so that nothing else refuses it.
        token = other.http.cookies[TOKEN.name]
        refused = await other.submit(plan, "outbox/start", token=token)
    assert (refused.status, "read-only" in refused.text) == (403, True)
    assert await rows(database) == ([], [1])
