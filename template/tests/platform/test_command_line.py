"""Commands on a real broker: messages as they arrive, and topics of other services."""

import asyncio
import os
import subprocess
import sys

import pytest

from app import wiring
from app.platform.events.event import EventRegistry, EventType
from app.platform.kafka.admin import provision
from app.platform.kafka.codec import Message
from app.platform.kafka.topics import required_topics
from app.platform.runtime import Context
from app.platform.service import Component, Service
from tests.world import Counted, World, counted, run_cli


def started(world: World, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """`app …` beside the test, on its broker."""
    return subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        env={
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": world.settings.kafka_bootstrap_servers,
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def own_topic(world: World) -> tuple[str, str]:
    """A topic that the command line knows, and the name of the service that has it."""
    registry = EventRegistry(world.registry.service, wiring.service.events)
    await provision(world.settings, required_topics(world.settings, registry, []))
    return registry.owned_topics()[0], registry.service


async def test_tail_says_when_it_listens_and_keeps_the_terminal(world: World) -> None:
    """No message controls the terminal, whatever it contains."""
    topic, service = await own_topic(world)
    text = "\x1b[2J✓"
    hostile = Message(topic, text.encode(), text.encode(), ((text, text.encode()),))
    settings = {"SERVICE_NAME": service, "PYTHONIOENCODING": "latin-1"}
    tail = started(world, "events", "tail", topic, "--limit", "1", **settings)
    assert tail.stderr is not None
    said = b""
    while b"listening to" not in said:
        said = await asyncio.to_thread(tail.stderr.readline)
        assert said, "it ended without listening"
    await world.producer.send(hostile)
    output, errors = await asyncio.to_thread(tail.communicate, timeout=60)
    assert tail.returncode == 0, errors
    assert output.count(rb"\x1b[2J\u2713") == 4
    assert b"\x1b" not in output


async def test_a_reader_that_goes_away_ends_the_output(world: World) -> None:
    topic, service = await own_topic(world)
    await world.producer.send_all([Message(topic, b"k", b"x" * 100_000)] * 3)
    tail = started(world, "events", "tail", topic, "--from-beginning", SERVICE_NAME=service)
    assert tail.stdout is not None
    assert tail.stderr is not None
    assert await asyncio.to_thread(tail.stdout.readline)
    tail.stdout.close()  # as `| head -1` does
    assert await asyncio.to_thread(tail.wait, timeout=60) == 1
    assert b"Error" not in await asyncio.to_thread(tail.stderr.read)
    tail.stderr.close()


async def test_a_missing_foreign_topic_is_named_with_its_owner(
    world: World, monkeypatch: pytest.MonkeyPatch, real_kafka: str
) -> None:
    owner = world.registry.service
    foreign = Service([Component("things", events=[EventType(Counted, service=owner)])])
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", world.settings.kafka_bootstrap_servers)
    event = counted(1)[0].model_dump_json()

    async def run(*arguments: str) -> str:
        return (await run_cli(*arguments, service=foreign, input=event)).output

    named = f"missing topic {world.topic} of the service {owner}, which has to create it"
    assert named in await run("events", "send", "-")
    context = Context.of(foreign, "reader", world.settings)
    await provision(world.settings, context.foreign_topics())
    assert f"sent thing.counted 1.0.0 to {world.topic}" in await run("events", "send", "-")
    assert f"foreign   {world.topic}  owner={owner}" in await run("topics", "list")
