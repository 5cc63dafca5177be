"""The outbox: events that Kafka refuses are parked, and the others are sent."""

import secrets

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from app.platform.kafka.settings import client_options
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.test_outbox_delivery import Writers, writers_of

LIMIT = "max.message.bytes"


async def limit_messages(bench: Bench, size: int) -> None:
    """Set the largest message that the broker takes on the topic, in bytes."""
    admin = AIOKafkaAdminClient(**client_options(bench.settings))
    await admin.start()
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, bench.topic, {LIMIT: str(size)})
        await admin.alter_configs([resource])
    finally:
        await admin.close()


async def parked(writers: Writers, held: bool) -> int:
    query = "SELECT count(*) FROM outbox_parked WHERE held = $1"
    return int((await writers.bench.query(query, held))[0][0])


@pytest.mark.parametrize("policy", ["block", "park"])
async def test_a_row_too_large_for_its_topic(bench_of: MakeBench, policy: str) -> None:
    """The broker refuses an event of one key; later ones of the key wait or are sent, as configured."""
    async with writers_of(bench_of, OUTBOX_ON_POISON=policy) as writers:
        await limit_messages(writers.bench, 12_000)
        writers.bench.worker()
        running = writers.bench.relay("relay")
        await running.is_ready()
        large = secrets.token_hex(10_000)  # which no compression makes small
        async with writers.writing():
            await writers.progress()
            refused = await writers.write(large)
            await eventually(lambda: parked(writers, False), lambda count: count == 1)
            await limit_messages(writers.bench, 1_000_000)
            await writers.progress()
            later = await writers.write(large)
            await writers.progress()
        if policy == "block":
            await eventually(lambda: parked(writers, True), lambda count: count == 1)
        await eventually(writers.waiting, lambda rows: rows == 0)
        ids = {event.event_id for event in await writers.sent()}
        assert refused.event_id not in ids
        assert (later.event_id in ids) == (policy == "park")
        assert ids | {refused.event_id, later.event_id} == writers.committed.keys()
        assert "MessageRejected" in writers.bench.app("outbox", "status")
        writers.bench.app("outbox", "retry", "--all")
        await writers.settled()
        if policy == "block":
            await writers.check()


async def test_a_topic_that_is_not_there(bench_of: MakeBench) -> None:
    """Rows for a missing topic wait, with no attempt counted; once it is made they are sent."""
    async with writers_of(bench_of, OUTBOX_MAX_ATTEMPTS="1") as writers:
        bench = writers.bench
        admin = AIOKafkaAdminClient(**client_options(bench.settings))
        await admin.start()
        await admin.delete_topics([bench.topic])
        await admin.close()
        running = bench.relay("relay")
        await running.is_ready()
        for number in range(3):
            await writers.write(f"key-{number}")
        status, said = await eventually(running.readiness, lambda answer: answer[0] == 503)
        assert "app topics create" in said["checks"]["topics"], (status, said)
        await bench.create_topics()
        bench.worker()
        await eventually(writers.waiting, lambda rows: rows == 0)
        count = await parked(writers, False)
        assert count == 0, f"{count} events parked"
        await writers.settled()
        await writers.check()
