"""Dead letters on real servers: which count, and where they can go."""

import asyncio
import os
import subprocess
import sys

from aiokafka.admin import AIOKafkaAdminClient

from app import wiring
from app.kafka.admin import provision
from app.kafka.codec import Message
from app.kafka.dlq import newest, read
from app.kafka.errors import PermanentError
from app.kafka.event import EventRegistry
from app.kafka.settings import client_options
from app.kafka.subscription import Subscription
from app.kafka.topics import wanted
from tests.fixtures import eventually
from tests.world import Counted, World, counted, failing

REFUSING = Subscription("counter", {Counted: failing(99, PermanentError("refused"))})


async def delete_topic(world: World, topic: str) -> None:
    """Delete `topic`, and wait until the broker knows nothing of it."""
    admin = AIOKafkaAdminClient(**client_options(world.settings))
    await admin.start()
    try:
        await admin.delete_topics([topic])
        await eventually(admin.list_topics, lambda found: topic not in found)
    finally:
        await admin.close()


async def test_letters_from_a_recreated_topic_all_count(world: World, real_kafka: str) -> None:
    first, second = counted(2, keys=1)
    async with world.running(REFUSING):
        await world.send(first)
        await world.dead_letters("counter", 1)
    await delete_topic(world, world.topic)
    async with world.running(REFUSING):
        await world.send(second)
        await world.dead_letters("counter", 2)
    letters = newest([x async for x in read(world.settings, [f"{world.topic}.counter.dlq"])])
    assert len({(x.origin_partition, x.origin_offset) for x in letters}) == 1
    assert {x.event_id for x in letters} == {first.event_id, second.event_id}


# The command line


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
    registry = EventRegistry(world.registry.service, wiring.EVENTS)
    await provision(world.settings, wanted(world.settings, registry, []))
    return registry.owned_topics()[0], registry.service


async def test_what_is_tailed_does_not_steer_the_terminal(world: World) -> None:
    topic, service = await own_topic(world)
    text = "\x1b[2J✓"
    hostile = Message(topic, text.encode(), text.encode(), ((text, text.encode()),))
    await world.producer.send(hostile)
    tail = started(
        world,
        *("events", "tail", topic, "--from-beginning", "--limit", "1"),
        SERVICE_NAME=service,
        PYTHONIOENCODING="latin-1",
    )
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
