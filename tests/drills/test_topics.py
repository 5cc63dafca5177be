"""Drill: others write to the topics in transactions, and topics grow and are made anew."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from app.platform.kafka.admin import TopicAdmin, reading
from app.platform.kafka.settings import client_options
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process


async def test_transactional_neighbour(bench_of: MakeBench) -> None:
    """Somebody else sends in transactions, every other of which is aborted, among our own events.

    None that was aborted is applied. At the end, which is a marker, nothing lags, and all is
    committed, for the worker and for whoever looks from outside.
    """
    bench = await bench_of("every-way")
    worker = bench.worker()
    await worker.is_ready()
    aborted = set()
    async with transactional(bench) as neighbour:
        for number in range(10):
            await bench.feed(20)
            aborted |= await transaction(bench, neighbour, abort=bool(number % 2))
    await bench.settled()
    await bench.check()
    rows = await bench.query("SELECT event_id FROM effects")
    assert aborted.isdisjoint(row["event_id"] for row in rows)
    found = {record.value for record in await bench.records(bench.topic)}
    assert len(found) == len(bench.sent), "readers see what was aborted"
    await eventually(lambda: uncommitted(bench), lambda left: not left, what="all is committed")
    await no_lag(bench, worker)


async def test_topic_recreated_and_grown(bench_of: MakeBench) -> None:
    """The topic gets more partitions, and is then deleted and made anew, while a worker runs whose
    new groups begin at the end.

    It reads all that is sent to the new partitions and to the new topic before it knows of them, and
    says meanwhile which topic is missing.
    """
    bench = await bench_of("single", KAFKA_AUTO_OFFSET_RESET="latest")
    worker = bench.worker()
    await worker.is_ready()
    await eventually(lambda: begun(bench), what="where it begins is committed")
    await bench.feed(50)
    await bench.settled()

    async with admin_client(bench) as admin:
        await admin.create_partitions({bench.topic: NewPartitions(total_count=6)})
        await eventually(lambda: has_partitions(bench, 6))
        await bench.feed(100)
        assert {sent.place[1] for sent in bench.sent.values()} & {3, 4, 5}
        await bench.settled(seconds=30)
        before = {*bench.sent}

        await admin.delete_topics([bench.topic])
    await eventually(
        worker.readiness, lambda said: f"missing topics: {bench.topic}" in str(said), seconds=30
    )
    bench.app("topics", "create")
    bench.sent.clear()
    await bench.feed(100)
    await bench.settled(seconds=30)
    await worker.is_ready()
    applied = [effect.event_id for effect in await bench.effects("single")]
    assert sorted(applied) == sorted(before | {*bench.sent}), "not each exactly once"
    await no_lag(bench, worker)


@asynccontextmanager
async def transactional(bench: Bench) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**client_options(bench.settings), transactional_id=bench.topic)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def transaction(bench: Bench, producer: AIOKafkaProducer, abort: bool) -> set[object]:
    """Send a few events in one transaction; those that nobody may ever apply."""
    await producer.begin_transaction()
    events = [bench.event() for _ in range(10)]
    await asyncio.gather(*[await bench._send(producer, event) for event in events])
    if not abort:
        await producer.commit_transaction()
        return set()
    await producer.abort_transaction()
    return {bench.sent.pop(event.event_id).event.event_id for event in events}


@asynccontextmanager
async def admin_client(bench: Bench) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client_options(bench.settings))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def uncommitted(bench: Bench) -> dict[str, set[tuple[TopicPartition, int]]]:
    """The ends of the topic that the consumers have not committed."""
    ends = (await end_offsets(bench)).items()
    left = {name: ends - (await bench.committed(name)).items() for name in bench.consumers}
    return {name: partitions for name, partitions in left.items() if partitions}


async def end_offsets(bench: Bench) -> dict[TopicPartition, int]:
    """The end offsets of the topic's partitions, markers of transactions included."""
    async with reading(bench.settings, [bench.topic]) as client:
        ends: dict[TopicPartition, int] = await client.end_offsets([*client.assignment()])
        return ends


async def no_lag(bench: Bench, worker: Process) -> None:
    await eventually(
        lambda: worker.metric("kafka_consumer_lag", topic=bench.topic),
        lambda left: left == 0,
        what="nothing lags",
    )


async def begun(bench: Bench) -> bool:
    committed = await bench.committed("single")
    return {tp.partition for tp in committed if tp.topic == bench.topic} == {0, 1, 2}


async def has_partitions(bench: Bench, count: int) -> bool:
    async with TopicAdmin.connected(bench.settings) as admin:
        return len(await admin.partitions([bench.topic])) == count
