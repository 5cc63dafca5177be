"""Consuming from three brokers: a hundred partitions and ten subscriptions in one process, beside the least.

Handlers of group commit insert one row each, as in *consume*; what counts is messages handled, so ten
subscriptions handle every message ten times, each with an inbox row and an effect.

- *3 brokers*: every topic has three replicas, two of which have to be in sync, and messages are sent
  with acks=all. *1 broker*: one replica. All brokers run all the time, on the cores of this machine.
- The time counts from the start of the consumers, with the joins of their groups.
- *partitions* are those of the topic (failure topics have three); *subscriptions* are consumer groups in one process.
- Sides between the least and the most change one thing each.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from consume import Bench, fill, one_row
from harness import Counted, Side, Stage, Watch, run
from results import Area, Comparison, Figures

from app.platform.database.engine import Base
from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.servers import Servers
from app.platform.events.event import EventType
from app.platform.health import Health
from app.platform.kafka.admin import provision
from app.platform.kafka.consumers import consuming
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import required_topics

HANDLED = 20_000  # in a round
SEND_SECONDS = 60.0  # new partitions have to find their leaders first
MOST = (3, 100, 10)
LEAST = (1, 3, 1)
SIDES = [LEAST, (3, 3, 1), (1, 100, 1), (1, 3, 10), MOST]


def name_of(brokers: int, partitions: int, subscriptions: int) -> str:
    parts = {"broker": brokers, "partition": partitions, "subscription": subscriptions}
    return ", ".join(f"{count} {part}{'s' * (count > 1)}" for part, count in parts.items())


@asynccontextmanager
async def three_brokers(stage: Stage) -> AsyncIterator[Stage]:
    """Start a cluster beside the broker of `stage`; share its database."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cluster = KafkaCluster(Path(folder) / "cluster", brokers=3, fresh=True)
        database = stage.servers.database_url
        with Servers(Path(folder), fsync=False, database_url=database, shared=cluster) as servers:
            yield replace(stage, servers=servers)


async def consume(
    bench: Bench, brokers: int, partitions: int, subscriptions: int, handled: int
) -> Figures:
    parts = [Subscription(f"bench-{n}", {Counted: one_row}) for n in range(subscriptions)]
    await bench.stage.truncate("inbox", "benchmark_effects")
    settings, registry = await bench.stage.topics(
        [EventType(Counted)],
        kafka_topic_partitions=partitions,
        kafka_topic_replication_factor=brokers,
        kafka_send_timeout_seconds=SEND_SECONDS,
    )
    few = settings.model_copy(update={"kafka_topic_partitions": LEAST[1]})
    topics = required_topics(few, registry, parts)
    await provision(few, [topic for topic in topics if topic.name != registry.topic(Counted)])
    messages = max(1, handled // subscriptions)
    async with KafkaProducer(settings).running() as producer:
        await fill(producer, registry, messages)
        watch = Watch()
        async with consuming(parts, registry, settings, bench.units, producer, Health()):
            await bench.until_applied(messages * subscriptions)
            return watch.figures(messages * subscriptions)


def measuring(
    bench: Bench, side: tuple[int, int, int], handled: int
) -> Callable[[], Awaitable[Figures]]:
    return lambda: consume(bench, *side, handled)


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    async with stage.database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    handled = max(100, int(HANDLED * scale))
    async with three_brokers(stage) as cluster:
        benches = {1: Bench(stage), 3: Bench(cluster)}
        yield [
            Side(name_of(*side), "messages/s", measuring(benches[side[0]], side, handled), 5)
            for side in SIDES
        ]


COMPARISONS = [
    Comparison(f"{name_of(*side)}, beside {name_of(*LEAST)}", name_of(*side), name_of(*LEAST))
    for side in reversed(SIDES[1:])
]

if __name__ == "__main__":
    area = Area("cluster", "Consuming from three brokers", __doc__ or "", COMPARISONS)
    run(area, plan, database_pool_size=20)
