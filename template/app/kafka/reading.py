"""Reading topics without a consumer group: for tools, which must not move anybody's offsets."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.errors import KafkaError

from app.kafka.admin import TopicAdmin
from app.kafka.errors import BrokerUnavailable
from app.kafka.security import client_options, reason_for
from app.kafka.settings import KafkaSettings

POLL_SECONDS = 0.5
STALL_SECONDS = 30.0


@asynccontextmanager
async def reading(
    settings: KafkaSettings, topics: Sequence[str]
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group, on all partitions of those of `topics` that exist.

    Raises BrokerUnavailable when no broker answers.
    """
    async with TopicAdmin.connected(settings) as admin:
        partitions = await admin.partitions(topics)
    client = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    try:
        try:
            await client.start()
        except KafkaError as error:
            raise BrokerUnavailable(
                f"cannot connect to Kafka: {await reason_for(error, settings)}"
            ) from error
        client.assign(partitions)
        yield client
    finally:
        await client.stop()


async def read_to_end(client: AIOKafkaConsumer) -> AsyncIterator[ConsumerRecord]:
    """Every record from the beginning up to where the partitions end now."""
    wanted = sorted(client.assignment())
    if not wanted:
        return
    starts = await client.beginning_offsets(wanted)
    ends = await client.end_offsets(wanted)
    for tp, start in starts.items():
        client.seek(tp, start)
    left = {tp for tp in wanted if starts[tp] < ends[tp]}
    while left:
        async with asyncio.timeout(STALL_SECONDS):
            fetched = await client.getmany(*left, timeout_ms=int(POLL_SECONDS * 1000))
        for tp, records in fetched.items():
            for record in records:
                if record.offset < ends[tp]:
                    yield record
        for tp in list(left):
            if await client.position(tp) >= ends[tp]:
                left.discard(tp)


async def follow(client: AIOKafkaConsumer, from_beginning: bool) -> AsyncIterator[ConsumerRecord]:
    """Records as they come, for ever; from the next one on, unless `from_beginning`."""
    wanted = sorted(client.assignment())
    if not wanted:
        return
    if from_beginning:
        await client.seek_to_beginning(*wanted)
    else:
        await client.seek_to_end(*wanted)
    while True:
        for records in (await client.getmany(timeout_ms=int(POLL_SECONDS * 1000))).values():
            for record in records:
                yield record
