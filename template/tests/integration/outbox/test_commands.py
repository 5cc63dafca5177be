"""`app outbox …` on a database with parked events."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from app.kafka.producer import FakeProducer
from tests.integration.outbox.conftest import MOVED, Moved, Sold, World


async def app(*arguments: str) -> Result:
    """Run the command where no event loop runs, as from a shell."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        return await loop.run_in_executor(thread, CliRunner().invoke, cli, ["outbox", *arguments])


@pytest.fixture
async def parked(
    world: World, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> World:
    """One event that cannot be sent, and one held behind it."""
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)
    world.producer = FakeProducer([MOVED])
    world.settings = world.settings.model_copy(update={"outbox_max_attempts": 1})
    await world.write(Sold(name="a", number=1), Moved(name="a", number=2))
    async with world.relaying():
        await world.has_parked(2)
    return world


async def first_id(world: World) -> str:
    return str((await world.rows("outbox_parked"))[0]["id"])


async def test_status_tells_what_waits_and_what_cannot_be_sent(parked: World) -> None:
    await parked.write(Moved(name="b", number=3))
    result = await app("status")
    assert result.exit_code == 0
    assert "shop.thing.sold key=a  UnknownTopic: the topic shop.thing.sold" in result.output
    assert "1 pending" in result.output
    assert "1 parked, 1 held behind them" in result.output


async def test_show_tells_all_of_a_parked_event(parked: World) -> None:
    result = await app("show", await first_id(parked))
    assert result.exit_code == 0
    for part in ("UnknownTopic", "ce_type: thing.sold", '"number": 1', "content-type"):
        assert part in result.output


async def test_show_of_an_event_that_is_not_parked_is_an_error(parked: World) -> None:
    result = await app("show", "999")
    assert result.exit_code == 1
    assert "no event 999 is parked" in result.output


async def test_retry_puts_the_event_back_with_what_it_held(parked: World) -> None:
    result = await app("retry", await first_id(parked))
    assert "2 events are on their way again" in result.output
    assert [row["topic"] for row in await parked.rows()] == ["shop.thing.sold", MOVED]
    assert await parked.rows("outbox_parked") == []


async def test_discard_deletes_the_event_and_frees_what_it_held(parked: World) -> None:
    result = await app("discard", "--key", "a")
    assert "1 events are gone" in result.output
    assert [row["topic"] for row in await parked.rows()] == [MOVED]
    assert await parked.rows("outbox_parked") == []


@pytest.mark.parametrize("command", ["retry", "discard"])
async def test_a_dry_run_changes_nothing(parked: World, command: str) -> None:
    before = await parked.rows("outbox_parked")
    result = await app(command, "--all", "--dry-run")
    assert f"would {command}" in result.output
    assert await parked.rows("outbox_parked") == before


@pytest.mark.parametrize("command", ["retry", "discard"])
async def test_it_has_to_be_said_which_events_are_meant(parked: World, command: str) -> None:
    result = await app(command)
    assert result.exit_code == 1
    assert "say which events" in result.output
    assert len(await parked.rows("outbox_parked")) == 2


async def test_an_id_that_is_not_parked_is_an_error_and_nothing_is_done(parked: World) -> None:
    result = await app("retry", await first_id(parked), "999")
    assert result.exit_code == 1
    assert "not parked: 999" in result.output
    assert len(await parked.rows("outbox_parked")) == 2
