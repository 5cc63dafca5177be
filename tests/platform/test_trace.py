"""`app trace` on real servers."""

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from app.platform.cli import command_line
from app.platform.events.event import EventType
from app.platform.kafka.codec import encode
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.subscription import Subscription
from app.platform.service import Component, Service
from app.platform.tracing import Trace
from tests.world import Counted, World, counted, failing

CORRELATION_ID = "correlation-1"
SUBSCRIPTION = Subscription("counter", {Counted: failing(99, PermanentError("refused"))})
SERVICE = Service([Component("t", events=[EventType(Counted)], subscriptions=[SUBSCRIPTION])])
TABLES = (
    "CREATE TABLE {} (created_at timestamptz, parked_at timestamptz, topic text, ce_type text,"
    " ce_id text, correlation_id text, reason text)"
)


def write_log(path: Path) -> None:
    known = {"timestamp": "2999-01-01T00:00:00Z", "level": "info", "message": "request"}
    lines = [
        json.dumps({**known, "path": "/things", "correlation_id": CORRELATION_ID}),
        json.dumps({**known, "path": "/other", "correlation_id": "correlation-2"}),
        f'{{"cut by a kill": "{CORRELATION_ID}',
    ]
    path.write_text("\n".join(lines))


async def run(world: World, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setenv("SERVICE_NAME", world.registry.service)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", world.settings.kafka_bootstrap_servers)
    url = world.database.engine.url.set(drivername="postgresql")
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    cli = command_line(lambda: SERVICE)
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["trace", *arguments])
    return result.exit_code, result.output


async def test_a_request_is_followed_in_order_of_time(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_log(tmp_path / "app.log")
    mine, other = counted(2, keys=1)
    async with world.running(SUBSCRIPTION):
        await world.producer.send(encode(mine, world.registry, Trace(CORRELATION_ID)))
        await world.producer.send(encode(other, world.registry, Trace("correlation-2")))
        await world.dead_letters("counter", 2)
    async with world.database.engine.begin() as connection:
        for table in ("outbox", "outbox_parked"):
            await connection.execute(text(TABLES.format(table)))
            await connection.execute(
                text(f"INSERT INTO {table} VALUES (now(), now(), 't', 'e', '1', :id, 'too large')"),
                {"id": CORRELATION_ID},
            )
    try:
        log = str(tmp_path / "app.log")
        code, output = await run(world, monkeypatch, CORRELATION_ID, "--log", log)
    finally:
        async with world.database.engine.begin() as connection:
            await connection.execute(text("DROP TABLE outbox, outbox_parked"))
    lines = output.splitlines()

    assert code == 0, output
    assert len(lines) == 5, output
    assert f"{world.topic}[" in lines[0]
    assert f"id={mine.event_id}" in lines[0]
    assert f"{world.topic}.counter.dlq[" in lines[1]
    assert "failed in=counter  error=refused" in lines[1]
    unsent = {line.rpartition("  ")[2] for line in lines[2:4]}
    assert unsent == {"not sent yet", "parked: too large"}
    assert lines[4].endswith("log     request path=/things")


async def test_an_unknown_correlation_id_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.create_topics(SUBSCRIPTION)
    code, output = await run(world, monkeypatch, "nobody")

    assert code == 1
    assert "nothing is known of the correlation id nobody" in output
