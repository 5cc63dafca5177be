"""Excerpts of topics on real servers: the newest records, and one record."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from app.platform.kafka import excerpts
from app.platform.kafka.admin import provision, reading
from app.platform.kafka.excerpts import Newest, Place, read_at, read_newest, read_one
from app.platform.kafka.settings import KafkaSettings, client_options
from app.platform.kafka.topics import Topic

MANY_BYTES = 1_000_000


@asynccontextmanager
async def sender(settings: KafkaSettings, **options: str) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(**client_options(settings), **options) as producer:
        yield producer


@pytest.fixture
async def topic(kafka_settings: KafkaSettings) -> str:
    name = f"{kafka_settings.kafka_client_id}.excerpts"
    await provision(kafka_settings, [Topic(name, 3, 1)])
    return name


async def send(settings: KafkaSettings, topic: str, *sizes: int) -> None:
    """Send records of these sizes to the partitions in turn; one follows each millisecond."""
    times = count(1_700_000_000_000)
    async with sender(settings) as producer:
        for number, size in enumerate(sizes):
            value = str(number).rjust(size, "0").encode()
            sent = await producer.send(topic, value, partition=number % 3, timestamp_ms=next(times))
            await sent


async def newest(
    settings: KafkaSettings, topic: str, count: int, max_bytes: int = MANY_BYTES
) -> Newest:
    async with reading(settings, [topic]) as client:
        return await read_newest(client, count, max_bytes)


def numbers(records: list[ConsumerRecord]) -> list[int]:
    return [int(record.value or b"") for record in records]


async def test_the_newest_records_come_in_order_of_time(
    kafka_settings: KafkaSettings, topic: str
) -> None:
    await send(kafka_settings, topic, *[3] * 100)

    records, has_older = await newest(kafka_settings, topic, 20)

    assert numbers(records) == list(range(80, 100))
    assert has_older


async def test_all_records_are_read_if_there_are_no_more(
    kafka_settings: KafkaSettings, topic: str
) -> None:
    assert await newest(kafka_settings, topic, 20) == ([], False)
    await send(kafka_settings, topic, *[2] * 20)

    records, has_older = await newest(kafka_settings, topic, 20)

    assert numbers(records) == list(range(20))
    assert not has_older


async def test_one_busy_partition_is_read_further_back(
    kafka_settings: KafkaSettings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excerpts, "_MIN_CHUNK", 4)
    await send(kafka_settings, topic, *[1] * 3)
    async with sender(kafka_settings) as producer:
        for number in range(3, 60):
            sent = await producer.send(topic, str(number).encode(), partition=1)
            await sent

    records, has_older = await newest(kafka_settings, topic, 10)

    assert numbers(records) == list(range(50, 60))
    assert has_older


async def test_values_have_a_limit_together(kafka_settings: KafkaSettings, topic: str) -> None:
    # Those of 5 bytes are older than the one of 600, for which there is no room.
    await send(kafka_settings, topic, 5, 5, 5, 600, 300, 100)

    records, has_older = await newest(kafka_settings, topic, 20, max_bytes=500)

    assert numbers(records) == [4, 5]
    assert has_older


async def test_few_records_are_read_however_many_there_are(
    kafka_settings: KafkaSettings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(kafka_settings, topic, *[4] * 900)
    read = 0
    getmany = AIOKafkaConsumer.getmany

    async def count(*args: object, **options: object) -> dict[TopicPartition, list[object]]:
        nonlocal read
        fetched: dict[TopicPartition, list[object]] = await getmany(*args, **options)
        read += sum(map(len, fetched.values()))
        return fetched

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", count)
    records, _ = await newest(kafka_settings, topic, 30)

    assert numbers(records) == list(range(870, 900))
    assert read <= 2 * 30 + 3 * 16


async def test_aborted_transactions_and_their_markers_are_skipped(
    kafka_settings: KafkaSettings, topic: str, real_kafka: str
) -> None:
    await send(kafka_settings, topic, 1, 1, 1)
    async with sender(kafka_settings, transactional_id=topic) as producer:
        for number in range(20):
            await producer.begin_transaction()
            await producer.send(topic, b"aborted", partition=number % 3)
            await producer.abort_transaction()

    records, has_older = await newest(kafka_settings, topic, 5)

    assert sorted(numbers(records)) == [0, 1, 2]
    assert not has_older
    async with reading(kafka_settings, [topic]) as client:
        assert await read_one(client, TopicPartition(topic, 0), 1) is None


async def test_one_record_is_read_by_its_offset(kafka_settings: KafkaSettings, topic: str) -> None:
    await send(kafka_settings, topic, *[2] * 9)
    partition = TopicPartition(topic, 1)
    async with reading(kafka_settings, [topic]) as client:
        found = await read_one(client, partition, 1)
        missing = [await read_one(client, partition, offset) for offset in (-1, 3, 10**30)]

    assert found is not None
    assert numbers([found]) == [4]
    assert missing == [None, None, None]


@pytest.mark.parametrize("place", [Place(), Place(partition=0), Place(key="k"), Place(offset=0)])
async def test_a_topic_that_is_missing_is_named(
    kafka_settings: KafkaSettings, place: Place
) -> None:
    async with reading(kafka_settings, ["never.made"]) as client:
        assert await read_at(client, place, 10) == ([], "The topic is not on the broker.")
