"""The outbox in the console, on a real database: the same effects as `app outbox`."""

from collections.abc import AsyncIterator, Sequence

import pytest
from browsing import Browser, console_for
from sqlalchemy import text

from app import wiring
from app.platform.console.access import ConsoleSettings
from app.platform.console.app import opened
from app.platform.database.engine import Database
from app.platform.runtime import Context
from tests.fixtures import settings_for
from tests.world import run_cli

HOSTILE = "</td><script>alert(1)</script>\N{RIGHT-TO-LEFT OVERRIDE}"
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
    assert "</td><script>alert(1)</script>\\u202e" in page.text
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


async def test_pages_of_parked_events_are_bounded(browser: Browser, database: Database) -> None:
    await park(database, *range(1, 206))
    page = await browser.get("/outbox")
    assert sum("outbox/" in link and link[-1].isdigit() for link in page.links) == 200
    assert "These are the oldest 200." in page.text


async def test_unknown_actions_are_refused(browser: Browser) -> None:
    assert (await browser.get("/outbox/plan?action=drop")).status == 400
    assert (await browser.get("/outbox?id=x")).status == 400
