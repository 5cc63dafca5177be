"""Positions of consumers: where they begin, what they pass, and topics that change meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from prometheus_client import REGISTRY

from app.platform.kafka import consumer, lag
from app.platform.kafka import settings as kafka_settings
from app.platform.kafka.admin import provision
from app.platform.kafka.settings import client_options
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import required_topics
from tests.fixtures import eventually
from tests.world import Counted, World, committed_offsets, counted, record_effect

pytestmark = pytest.mark.usefixtures("real_kafka")

COUNTER = Subscription("counter", {Counted: record_effect})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics, metadata and lag are looked at several times a second."""
    monkeypatch.setattr(consumer, "CHECK_INTERVAL_SECONDS", 0.2)
    monkeypatch.setattr(kafka_settings, "METADATA_MAX_AGE_SECONDS", 0.3)
    monkeypatch.setattr(lag, "ASSIGNMENT_INTERVAL_SECONDS", 0.2)


@pytest.fixture(params=["earliest", "latest"])
def reset(request: pytest.FixtureRequest, world: World) -> str:
    """Either value of KAFKA_AUTO_OFFSET_RESET."""
    value: str = request.param
    world.settings = world.settings.model_copy(update={"kafka_auto_offset_reset": value})
    return value


@asynccontextmanager
async def admin_client(world: World) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client_options(world.settings))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def transactional(world: World) -> AsyncIterator[AIOKafkaProducer]:
    """Somebody else's producer, which sends in transactions."""
    name = f"{world.settings.kafka_client_id}.neighbour"
    producer = AIOKafkaProducer(**client_options(world.settings), transactional_id=name)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send(producer: AIOKafkaProducer, world: World, partition: int, event: Counted) -> None:
    message = world.message(event)
    await producer.send(
        message.topic,
        message.value,
        message.key,
        partition=partition,
        headers=list(message.headers),
    )


def total(name: str, consumer: str, topic: str) -> float | None:
    """The sum of the series of `topic`; None when there are none."""
    found = [
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == name
        and (sample.labels.get("consumer"), sample.labels.get("topic")) == (consumer, topic)
    ]
    return sum(found) if found else None


async def has_begun(world: World) -> None:
    """Wait until the consumer has committed where it begins to read each partition."""

    async def committed() -> set[int]:
        async with admin_client(world) as admin:
            group = f"{world.settings.kafka_group_id}.counter"
            found = await admin.list_consumer_group_offsets(group)
        return {tp.partition for tp, entry in found.items() if tp.topic == world.topic}

    await eventually(committed, lambda partitions: len(partitions) == 3)


async def test_aborted_transactions_are_neither_applied_nor_lag(world: World) -> None:
    await world.create_topics(COUNTER)
    async with transactional(world) as producer:
        for number in range(6):
            await producer.begin_transaction()
            for partition in range(world.settings.kafka_topic_partitions):
                await send(producer, world, partition, Counted(name=f"p{partition}", number=number))
            if number % 2:
                await producer.abort_transaction()
            else:
                await producer.commit_transaction()
    async with world.running(COUNTER):
        await world.has_effects(9)
        # Six messages and six markers in each of three partitions.
        await eventually(lambda: world.committed("counter"), lambda offset: offset == 36)
        lag = "kafka_consumer_lag"
        await eventually(lambda: asyncio.sleep(0, total(lag, "counter", world.topic) == 0))
        effects = await world.effects()
    assert sorted({number for _, number in effects}) == [0, 2, 4]
    assert len(effects) == len(await world.records(world.topic)) == 9


async def test_a_transaction_that_is_open_is_waited_for(world: World) -> None:
    async with world.running(COUNTER), transactional(world) as producer:
        await producer.begin_transaction()
        await send(producer, world, 0, Counted(name="open", number=1))
        await producer.flush()
        assert await world.records(world.topic) == []
        await producer.commit_transaction()
        assert await world.has_effects(1) == [("open", 1)]


async def test_a_new_partition_is_read_from_its_beginning(world: World, reset: str) -> None:
    async with world.running(COUNTER):
        await has_begun(world)
        await world.send(*counted(3))
        await world.has_effects(3)
        async with admin_client(world) as admin, transactional(world) as producer:
            await admin.create_partitions({world.topic: NewPartitions(total_count=5)})
            await eventually(lambda: has_partitions(producer, world.topic, 5))
            await producer.begin_transaction()
            for partition in (3, 4):
                await send(producer, world, partition, Counted(name="new", number=partition))
            await producer.commit_transaction()
        effects = await world.has_effects(5, seconds=30)
    assert [number for name, number in effects if name == "new"] in ([3, 4], [4, 3])


async def test_a_partition_added_in_downtime_is_read_from_its_start(
    world: World, reset: str
) -> None:
    async with world.running(COUNTER):
        await has_begun(world)
    async with admin_client(world) as admin, transactional(world) as producer:
        await admin.create_partitions({world.topic: NewPartitions(total_count=4)})
        await eventually(lambda: has_partitions(producer, world.topic, 4))
        await producer.begin_transaction()
        await send(producer, world, 3, Counted(name="new", number=3))
        await producer.commit_transaction()
    async with world.running(COUNTER):
        assert await world.has_effects(1) == [("new", 3)]


async def has_partitions(producer: AIOKafkaProducer, topic: str, count: int) -> bool:
    await producer.client.force_metadata_update()
    return len(await producer.partitions_for(topic)) == count


async def test_latest_skips_messages_older_than_the_group(world: World) -> None:
    world.settings = world.settings.model_copy(update={"kafka_auto_offset_reset": "latest"})
    await world.create_topics(COUNTER)
    await world.send(*counted(5))
    async with world.running(COUNTER):
        # Where it begins is committed, so that the next start is none of a new group.
        await eventually(lambda: world.committed("counter"), lambda offset: offset == 5)
    await world.send(Counted(name="new", number=9))
    async with world.running(COUNTER):
        assert await world.has_effects(1) == [("new", 9)]


async def test_messages_left_by_retention_are_read(world: World, reset: str) -> None:
    async with world.running(COUNTER):
        await has_begun(world)
    events = [Counted(name="same-key", number=number) for number in range(5)]
    await world.send(*events)
    (partition,) = {record.partition for record in await world.records(world.topic)}
    before = total("kafka_messages_expired_total", "counter", world.topic) or 0
    async with admin_client(world) as admin:
        oldest = RecordsToDelete(before_offset=3)
        await admin.delete_records({TopicPartition(world.topic, partition): oldest})
    async with world.running(COUNTER):
        effects = await world.has_effects(2)
        expired = (total("kafka_messages_expired_total", "counter", world.topic) or 0) - before
    assert [number for _, number in effects] == [3, 4]
    assert expired == 3


async def test_a_topic_made_anew_is_read_from_its_beginning(world: World, reset: str) -> None:
    async with world.running(COUNTER):
        await has_begun(world)
        await world.send(*counted(20))
        await world.has_effects(20)
        async with admin_client(world) as admin:
            await admin.delete_topics([world.topic])
        # At first it may only say that the group assigns its partitions anew.
        report = await eventually(
            world.health.ready,
            lambda found: world.topic in found.checks["consumer counter"],
            seconds=30,
        )
        assert report.status != "ok"
        assert "app topics create" in report.checks["consumer counter"]
        await provision(world.settings, required_topics(world.settings, world.registry, [COUNTER]))
        await world.send(Counted(name="anew", number=99))  # by a producer that knew the old one
        effects = await world.has_effects(21, seconds=30)
        await eventually(world.health.ready, lambda found: found.status == "ok", seconds=30)
    assert effects[-1] == ("anew", 99)


async def test_an_offset_beyond_the_end_leads_to_the_beginning(world: World, reset: str) -> None:
    async with world.running(COUNTER) as (consumer,):
        await has_begun(world)
        await world.send(Counted(name="same-key", number=1))
        await world.has_effects(1)
        (partition,) = {record.partition for record in await world.records(world.topic)}
        assert consumer._client is not None
        await consumer._client.commit({TopicPartition(world.topic, partition): 7})
    group = f"{world.settings.kafka_group_id}.counter"
    assert await committed_offsets(world.settings, group, world.topic) == 7
    await world.send(Counted(name="same-key", number=2))
    async with world.running(COUNTER):
        assert await world.has_effects(2) == [("same-key", 1), ("same-key", 2)]
