import asyncio

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from app.commands.projections import commands
from app.kafka.settings import KafkaSettings
from tests.eventually import eventually
from tests.integration.cqrs.conftest import Shop


class Cli:
    """`app projections …`, on the test's servers. Commands run their own loop, so in a thread."""

    async def __call__(self, *arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, commands, ["projections", *arguments])

    async def says(self, *arguments: str) -> str:
        """What the command prints, which must succeed."""
        done = await self(*arguments)
        assert done.exit_code == 0, f"exit code {done.exit_code}: {done.output}{done.exception!r}"
        return done.stdout


@pytest.fixture
def cli(
    migrated_database_url: str, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> Cli:
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_settings.kafka_bootstrap_servers)
    monkeypatch.setenv("SERVICE_NAME", kafka_settings.kafka_client_id)
    monkeypatch.setenv("KAFKA_GROUP_ID", kafka_settings.kafka_group_id)
    return Cli()


async def test_the_projections_are_listed_with_their_tables(cli: Cli) -> None:
    assert (await cli.says("list")).splitlines() == [
        "order-views     order_views",
        "daily-sales     sales, daily_sales",
        "customer-names  customer_names",
    ]


async def test_a_rebuild_fills_the_read_side_and_shows_how_it_gets_on(cli: Cli, shop: Shop) -> None:
    user_id = await shop.sign_up("ada")
    ids = [await shop.place(user_id) for _ in range(3)]
    for name in ("order-views", "daily-sales", "customer-names"):
        rebuilt = await cli.says("rebuild", name, "--batch", "2")
    assert "customer-names: 1 of about 1 rows\ncustomer-names: rebuilt from 1 rows in" in rebuilt
    content = await shop.content()
    assert [row[0] for row in content["order_views"]] == ids
    assert content["customer_names"] == [(user_id, "ada")]


async def test_a_projection_that_is_not_there_is_said_to_be_missing(cli: Cli) -> None:
    answer = await cli("rebuild", "orders")
    assert answer.exit_code == 1
    assert "there is no projection orders; there are: order-views, daily-sales" in answer.output


async def test_status_tells_of_a_rebuild_that_was_killed_until_it_is_abandoned(
    cli: Cli, shop: Shop
) -> None:
    await shop.place(await shop.sign_up("ada"))
    killed = shop.rebuild_views()
    await killed.register()
    await killed.fill()
    said = (await cli.says("status")).splitlines()
    assert said[0] == (
        "order-views     0 events behind, the oldest for 0 s"
        "; its rebuild was interrupted at 1 of 1 rows"
    )
    assert said[1] == "daily-sales     0 events behind, the oldest for 0 s"
    abandoned = await cli.says("abandon", "order-views")
    assert abandoned == "order-views: abandoned; the old one stays in place\n"
    assert await shop.shadows() == []
    assert "there was no rebuild" in await cli.says("abandon", "order-views")


async def test_a_rebuild_is_refused_while_another_one_runs(cli: Cli, shop: Shop) -> None:
    await shop.place(await shop.sign_up("ada"))
    async with shop.database.sessions() as report, report.begin():
        await report.execute(text("SELECT count(*) FROM order_views"))  # the swap waits for it
        rebuilding = asyncio.create_task(shop.rebuild_views().run(lambda progress: None))
        status = await eventually(lambda: cli.says("status"), lambda said: "rebuild" in said)
        refused = await cli("rebuild", "order-views")
    await rebuilding
    assert "its rebuild runs at" in status
    assert refused.exit_code == 1
    assert "order-views is being rebuilt already" in refused.output
