"""The read side in the console, on real servers: the same effects as `app projections`."""

from collections.abc import AsyncIterator

import pytest
from browsing import Browser, Page, console_for
from sqlalchemy import text

from app import wiring
from app.platform.console.access import TOKEN, ConsoleSettings
from app.platform.console.app import opened
from app.platform.database.engine import Database
from app.platform.projections.projection import RebuildRow
from app.platform.projections.rebuild import exclusive_rebuild
from app.platform.runtime import Context
from tests.fixtures import settings_for, unique_service_name
from tests.world import run_cli

NAME = wiring.service.projections[0].projection.name


@pytest.fixture
async def browser(
    database: Database,
    migrated_database_url: str,
    kafka_bootstrap_servers: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Browser]:
    name = unique_service_name()
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_bootstrap_servers)
    context = Context.of(wiring.service, name, settings_for(kafka_bootstrap_servers, name))
    app = console_for(wiring.service, context, migrated_database_url)
    browser = Browser(app)
    async with opened(app), browser.http:
        yield browser


async def act(browser: Browser, action: str) -> Page:
    """Send the first form of the page with this action; return the page of the ended job."""
    page = await browser.get("/projections")
    form = page.forms[0]
    fields = form.fields | {"action": action}
    job = await browser.post(str(page.response.url.join(form.action)), fields)
    return await browser.ended(job)


async def interrupted(database: Database) -> None:
    """Leave what a killed rebuild leaves."""
    entry = wiring.service.projections[0]
    await entry.rebuild(database, 10).register()


async def test_projections_are_listed_with_lag_and_tables(browser: Browser) -> None:
    page = await browser.get("/projections")
    for entry in wiring.service.projections:
        tables = ", ".join(table.name for table in entry.projection.tables)
        assert f"{entry.projection.name} {tables} 0 0 s none Rebuild" in page.text


async def test_a_rebuild_is_that_of_the_command(browser: Browser, database: Database) -> None:
    job = await act(browser, "rebuild")
    assert "finished" in job.text
    by_command = (await run_cli("projections", "rebuild", NAME)).output
    count = by_command.split(" rebuilt from ")[1].split()[0]
    assert f"rebuilt from {count} rows" in job.text
    assert await registered(database) == []


async def test_an_interrupted_rebuild_can_be_abandoned(
    browser: Browser, database: Database
) -> None:
    await interrupted(database)
    assert "interrupted" in (await browser.get("/projections")).text
    job = await act(browser, "abandon")
    assert "abandoned; the old one stays in place" in job.text
    assert await registered(database) == []
    await interrupted(database)
    assert "abandoned" in (await run_cli("projections", "abandon", NAME)).output
    assert "there was no rebuild" in (await act(browser, "abandon")).text


async def test_a_second_rebuild_is_refused(browser: Browser, database: Database) -> None:
    page = await browser.get("/projections")
    async with exclusive_rebuild(database, wiring.service.projections[0].projection):
        await interrupted(database)
        form = page.forms[0].fields | {"action": "rebuild"}
        job = await browser.ended(await browser.post("/projections/start", form))
        by_command = await run_cli("projections", "rebuild", NAME)
        # The one that runs is shown as such, and only abandoned.
        running = await browser.get("/projections")
    for said in (job.text, by_command.output):
        assert f"{NAME} is being rebuilt already" in said
    assert "failed" in job.text
    assert "interrupted" not in running.text
    assert running.forms[0].fields["action"] == "abandon"
    await act(browser, "abandon")


async def test_a_read_only_console_rebuilds_nothing(
    browser: Browser, migrated_database_url: str
) -> None:
    page = await browser.get("/projections")
    context, settings = browser.app.state.console.context, ConsoleSettings(_env_file=None)
    app = console_for(wiring.service, context, migrated_database_url, settings)
    other = Browser(app)
    async with opened(app), other.http:
        assert (await other.get("/projections")).forms == []
        # With a token that is right, so that nothing else refuses it.
        right = {"action": "rebuild", "token": other.http.cookies[TOKEN.name]}
        refused = await other.post("/projections/start", page.forms[0].fields | right)
        assert (refused.status, "read-only" in refused.text) == (403, True)
        assert app.state.console.jobs.latest() == []


async def registered(database: Database) -> list[str]:
    async with database.engine.connect() as connection:
        table = RebuildRow.__tablename__
        return list(await connection.scalars(text(f"SELECT projection FROM {table}")))


async def test_unknown_projections_are_refused(browser: Browser) -> None:
    page = await browser.get("/projections")
    form = page.forms[0]
    url = str(page.response.url.join(form.action))
    assert (
        await browser.post(url, form.fields | {"projection": "x", "action": "rebuild"})
    ).status == 400
    assert (await browser.post(url, form.fields | {"action": "drop"})).status == 400
