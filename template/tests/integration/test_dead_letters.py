"""Dead letters on real servers: which count, and where they can go."""

from aiokafka.admin import AIOKafkaAdminClient

from app.kafka.dlq import newest, read
from app.kafka.errors import PermanentError
from app.kafka.settings import client_options
from app.kafka.subscription import Subscription
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
