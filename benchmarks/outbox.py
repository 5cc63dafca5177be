"""The outbox: the throughput of its relay, the latency of an event, and the memory.

All sides work on the same rows of 200 and some bytes, one real Kafka and one real PostgreSQL.

- *one row, one send, one commit*: the relay of the usual guide.
- *relay*: the service's, from its start to an empty outbox; *relay processes* are `app relay`, one to
  four of them, from the commit that makes the rows visible, and notifies them as a service's does.
- *faststream-outbox*: its relay to Kafka as its documentation shows it (one worker, ten rows at a
  time), and with 32 workers that fetch 500 rows and delete 100 at once. It decodes and encodes the
  body, and keeps no order by key.
- *plain send and gather*: no outbox at all, the same messages from memory.
- *commit to consumer*: from when a commit has returned to when a consumer in the same process has the
  message, at a steady rate; the relay is in the writer's process (where a commit wakes it), or in one
  of its own (where NOTIFY does). faststream-outbox is woken up by NOTIFY, too.
- *backlog*: a relay process and its resident memory, sampled ten times a second, until 10,000 and
  1,000,000 rows are drained (fewer below a scale of one half); measured once.
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from faststream import Context
from faststream.kafka import KafkaBroker, KafkaResponse
from faststream_outbox import OutboxBroker, make_outbox_table
from harness import (
    APP,
    KEYS,
    Counted,
    Running,
    Side,
    Stage,
    Watch,
    process,
    run,
    until_ready,
)
from results import Area, Comparison, Figures
from sqlalchemy import MetaData, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.platform.background import WakeUp
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventRegistry, EventType
from app.platform.kafka.codec import Message
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.settings import KafkaSettings
from app.platform.outbox.model import HEADER_COLUMNS, OutboxRow, as_message
from app.platform.outbox.publisher import OutboxPublisher
from app.platform.outbox.relay import Relay
from app.platform.outbox.settings import OutboxSettings
from app.platform.outbox.wakeup import CHANNEL, notifying

SEND_SECONDS = 60.0
SEED_ROWS = 1_000
COMMENT = "x" * 200
COLUMNS = ", ".join(["bucket", "topic", "key", "value", "headers", *HEADER_COLUMNS.values()])
PEER_TABLE = "peer_outbox"
QUEUE = "things"


@dataclass
class Filled:
    """The topics of one measurement, and the rows for them."""

    stage: Stage
    settings: KafkaSettings
    registry: EventRegistry
    published: WakeUp = field(default_factory=WakeUp)

    @property
    def topic(self) -> str:
        return self.registry.topic(Counted)

    @property
    def units(self) -> UnitOfWorkFactory:
        limit = self.settings.kafka_max_message_bytes

        def bind(session: AsyncSession) -> OutboxPublisher:
            settings = OutboxSettings(_env_file=None)
            return OutboxPublisher(session, self.registry, settings, limit, self.published)

        return UnitOfWorkFactory(self.stage.database.sessions, bind)

    async def write(self, numbers: Sequence[int]) -> None:
        async with self.units.begin() as uow:
            for number in numbers:
                await uow.events.publish(event(number))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AIOKafkaProducer]:
        """Make a producer with the options of ours."""
        client = AIOKafkaProducer(
            bootstrap_servers=self.settings.kafka_bootstrap_servers,
            acks="all",
            enable_idempotence=True,
            compression_type=self.settings.kafka_compression,
        )
        await client.start()
        try:
            yield client
        finally:
            await client.stop()

    async def messages(self) -> list[Message]:
        async with self.stage.database.sessions() as session:
            rows = await session.scalars(select(OutboxRow).order_by(OutboxRow.id))
            return [message_of(row) for row in rows]

    async def check_sent(self, rows: int) -> None:
        """Check the topics: an empty table could also be one whose rows were dropped."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka_bootstrap_servers)
        await consumer.start()
        try:
            numbers = range(self.settings.kafka_topic_partitions)
            places = [TopicPartition(self.topic, number) for number in numbers]
            sent = sum((await consumer.end_offsets(places)).values())
        finally:
            await consumer.stop()
        assert sent >= rows, f"{sent} messages of {rows} rows"

    async def until_empty(self, table: str = "outbox") -> None:
        while await self.stage.connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
            await asyncio.sleep(0.04)


def event(number: int) -> Counted:
    return Counted(name=f"key-{number % KEYS}", number=number, comment=COMMENT)


def message_of(row: OutboxRow) -> Message:
    columns = tuple(getattr(row, column) for column in HEADER_COLUMNS.values())
    return as_message(row.topic, row.key, row.value, json.dumps(row.headers), columns)


async def filled(stage: Stage, rows: int) -> Filled:
    """New topics, and `rows` events for them in the outbox: the first ones written as the service
    writes them, the others copies of those."""
    settings, registry = await stage.topics(
        [EventType(Counted)], kafka_send_timeout_seconds=SEND_SECONDS
    )
    await stage.truncate("outbox", "outbox_parked")
    full = Filled(stage, settings, registry)
    if rows:
        await full.write(range(min(rows, SEED_ROWS)))
        await stage.connection.execute(
            f"INSERT INTO outbox ({COLUMNS}) SELECT {COLUMNS} FROM outbox"
            f" CROSS JOIN generate_series(1, {rows // SEED_ROWS - 1})"
        )
    await stage.settle("outbox")
    return full


Measure = Callable[[Stage, int], Awaitable[Figures]]


async def one_by_one(stage: Stage, rows: int) -> Figures:
    """Relay as the guide does: take a row, await its send, commit, take the next."""
    full = await filled(stage, rows)
    async with full.client() as client, stage.database.sessions() as session:
        left, watch = rows, Watch()
        while left:
            query = select(OutboxRow).order_by(OutboxRow.id).limit(100)
            for row in (await session.scalars(query)).all():
                message = message_of(row)
                await client.send_and_wait(
                    message.topic, message.value, message.key, headers=list(message.headers)
                )
                await session.execute(delete(OutboxRow).where(OutboxRow.id == row.id))
                await session.commit()
                left -= 1
        return watch.figures(rows)


async def plain_sending(stage: Stage, rows: int) -> Figures:
    """Send the same bytes and headers from memory."""
    full = await filled(stage, rows)
    messages = await full.messages()
    async with full.client() as client:
        watch = Watch()
        acknowledged = [
            await client.send(m.topic, m.value, m.key, headers=list(m.headers)) for m in messages
        ]
        await asyncio.gather(*acknowledged)
        return watch.figures(rows)


@asynccontextmanager
async def relaying(full: Filled, **options: int) -> AsyncIterator[None]:
    """Run the service's relay in this process."""
    async with KafkaProducer(full.settings).running() as producer:
        await producer.ping()
        settings = OutboxSettings(_env_file=None, **options)
        engine = full.stage.database.engine
        relay = Relay(engine, producer, settings, SEND_SECONDS, full.published)
        async with relay.running(stop_seconds=5):
            yield


def relay(**options: int) -> Measure:
    async def measure(stage: Stage, rows: int) -> Figures:
        full = await filled(stage, rows)
        watch = Watch()
        async with relaying(full, **options):
            await full.until_empty()
            figures = watch.figures(rows)
        await full.check_sent(rows)
        return figures

    return measure


# Relays in processes of their own


@asynccontextmanager
async def relay_process(stage: Stage, **environment: str) -> AsyncIterator[Running]:
    """Run `app relay`, and yield it once it is ready."""
    async with process(stage, *APP, "relay", **environment) as started:
        await until_ready(started)
        yield started


def relay_processes(count: int, prepare: str = "", **environment: str) -> Measure:
    """Relay rows that the statement `prepare` has changed."""

    async def measure(stage: Stage, rows: int) -> Figures:
        full = await filled(stage, rows)
        if prepare:
            await stage.connection.execute(prepare)
        await stage.connection.execute("CREATE TABLE kept AS SELECT * FROM outbox")
        await stage.truncate("outbox")
        try:
            async with AsyncExitStack() as stack:
                relays = [
                    await stack.enter_async_context(relay_process(stage, **environment))
                    for _ in range(count)
                ]
                await stage.connection.execute(
                    f"INSERT INTO outbox ({COLUMNS}) SELECT {COLUMNS} FROM kept; NOTIFY {CHANNEL}"
                )
                watch = Watch(*relays)
                await full.until_empty()
                figures = watch.figures(rows)
            await full.check_sent(rows)
            return figures
        finally:
            await stage.connection.execute("DROP TABLE kept")

    return measure


def backlog(stage: Stage, rows: int) -> Callable[[], Awaitable[dict[str, float]]]:
    async def measure() -> dict[str, float]:
        full = await filled(stage, rows)
        sizes: list[int] = []
        async with relay_process(stage) as relay:
            drained = asyncio.create_task(full.until_empty())
            while not drained.done():
                sizes.append(relay.process.memory_info().rss)
                await asyncio.sleep(0.1)
            await drained
        await full.check_sent(rows)
        return {"most": max(sizes) / 2**20, "median": statistics.median(sizes) / 2**20}

    return measure


# The peer

PEER_OUTBOX = make_outbox_table(MetaData(), table_name=PEER_TABLE)
HEADERS = Context("message.headers")
TUNED = {"max_workers": 32, "fetch_batch_size": 500, "terminal_flush_batch_size": 100}


@asynccontextmanager
async def peer_relaying(full: Filled, **options: int) -> AsyncIterator[OutboxBroker]:
    outbox = OutboxBroker(full.stage.database.engine, outbox_table=PEER_OUTBOX, logger=None)
    kafka = KafkaBroker(
        full.settings.kafka_bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
        logger=None,
    )

    @kafka.publisher(full.topic)
    @outbox.subscriber(QUEUE, **options)
    async def relay_to_kafka(
        body: dict[str, object], headers: dict[str, str] = HEADERS
    ) -> KafkaResponse:
        return KafkaResponse(body, key=headers["key"].encode())

    await kafka.start()
    await outbox.start()
    try:
        yield outbox
    finally:
        await outbox.stop()
        await kafka.stop()


async def write_to_peer(full: Filled, broker: OutboxBroker, number: int) -> None:
    one = event(number)
    async with full.stage.database.sessions() as session, session.begin():
        value = one.model_dump(mode="json")
        await broker.publish(value, queue=QUEUE, session=session, headers={"key": one.name})


def peer(**options: int) -> Measure:
    async def measure(stage: Stage, rows: int) -> Figures:
        full = await filled(stage, 0)
        await stage.truncate(PEER_TABLE)
        broker = OutboxBroker(stage.database.engine, outbox_table=PEER_OUTBOX, logger=None)
        for number in range(min(rows, 100)):
            await write_to_peer(full, broker, number)
        await stage.connection.execute(
            f"INSERT INTO {PEER_TABLE} (queue, payload, headers)"
            f" SELECT queue, payload, headers FROM {PEER_TABLE}"
            f" CROSS JOIN generate_series(1, {rows // 100 - 1})"
        )
        await stage.settle(PEER_TABLE)
        watch = Watch()
        async with peer_relaying(full, **options):
            await full.until_empty(PEER_TABLE)
            figures = watch.figures(rows)
        await full.check_sent(rows)
        return figures

    return measure


# Commit to consumer

Write = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def ours_in_process(full: Filled) -> AsyncIterator[Write]:
    async with relaying(full):
        yield lambda number: full.write([number])


@asynccontextmanager
async def ours_apart(full: Filled) -> AsyncIterator[Write]:
    async with (
        relay_process(full.stage),
        notifying(full.stage.database.engine, full.published),
    ):
        yield lambda number: full.write([number])


@asynccontextmanager
async def peer_in_process(full: Filled) -> AsyncIterator[Write]:
    await full.stage.truncate(PEER_TABLE)
    async with peer_relaying(full, **TUNED) as broker:
        yield lambda number: write_to_peer(full, broker, number)


RELAYS: dict[str, Callable[[Filled], AbstractAsyncContextManager[Write]]] = {
    "relay in the writer's process": ours_in_process,
    "relay process": ours_apart,
    "faststream-outbox, tuned": peer_in_process,
}


def latency(stage: Stage, which: str, rate: int, events: int) -> Side:
    async def measure() -> dict[str, float]:
        full = await filled(stage, 0)
        committed: dict[int, float] = {}
        received: dict[int, float] = {}
        consumer = AIOKafkaConsumer(
            full.topic,
            bootstrap_servers=full.settings.kafka_bootstrap_servers,
            auto_offset_reset="earliest",
        )

        async def consume() -> None:
            while len(received) < events:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    now = time.perf_counter()
                    for record in records:
                        received.setdefault(json.loads(record.value)["number"], now)

        async def commit(number: int, write: Write) -> None:
            await write(number)
            committed[number] = time.perf_counter()

        await consumer.start()
        try:
            async with RELAYS[which](full) as write:
                reading = asyncio.create_task(consume())
                writing, begun = [], time.perf_counter()
                for number in range(events):
                    await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
                    writing.append(asyncio.create_task(commit(number, write)))
                await asyncio.gather(*writing)
                await asyncio.wait_for(reading, 120)
        finally:
            await consumer.stop()
        waits = [1000 * (received[n] - committed[n]) for n in range(events)]
        steps = statistics.quantiles(waits, n=100, method="inclusive")
        return {"p50": max(0.0, steps[49]), "p99": steps[98]}

    return Side(f"{which}, {rate:,} events/s", "ms", measure)


# name, rows in a round, what runs, rounds at most
SIDES: list[tuple[str, int, Measure, int]] = [
    ("one row, one send, one commit", 1_000, one_by_one, 9),
    ("faststream-outbox", 1_000, peer(), 9),
    ("faststream-outbox, tuned", 5_000, peer(**TUNED), 9),
    ("relay", 60_000, relay(), 9),
    ("relay, 1 task", 60_000, relay(outbox_relay_tasks=1), 9),
    ("plain send and gather", 60_000, plain_sending, 9),
    ("1 relay process", 60_000, relay_processes(1), 9),
    ("2 relay processes", 60_000, relay_processes(2), 9),
    ("4 relay processes", 60_000, relay_processes(4), 9),
    ("relay, growth x1", 3_000, relay(), 2),
    ("relay, growth x10", 30_000, relay(), 2),
    ("relay, growth x100", 300_000, relay(), 2),
]
SMALL, LARGE = "backlog x1", "backlog x100"


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    async with stage.database.engine.begin() as connection:
        await connection.run_sync(PEER_OUTBOX.create)

    def side(name: str, rows: int, measure: Measure, rounds: int) -> Side:
        count = max(SEED_ROWS, int(rows * scale) // SEED_ROWS * SEED_ROWS)
        return Side(name, "rows/s", lambda: measure(stage, count), rounds)

    def memory(name: str, rows: int) -> Side:
        count = max(SEED_ROWS, int(rows * min(1, 2 * scale)) // SEED_ROWS * SEED_ROWS)
        return Side(name, "MiB", backlog(stage, count), 1)

    # events a second: events of a round
    rates = {1: max(10, int(20 * scale)), 100: max(100, int(300 * scale)), 1000: int(3000 * scale)}
    yield [
        *(side(*entry) for entry in SIDES),
        *(
            latency(stage, which, rate, events)
            for rate, events in rates.items()
            for which in RELAYS
        ),
        memory(SMALL, 10_000),
        memory(LARGE, 1_000_000),
    ]


GUIDE, PEER, PEER_TUNED, OURS, _, PLAIN = (name for name, *_ in SIDES[:6])
COMPARISONS = [
    Comparison("relay, beside one row, one send, one commit", OURS, GUIDE, ">= 20"),
    Comparison("relay, beside plain send and gather", OURS, PLAIN, ">= 0.67"),
    Comparison("relay, beside faststream-outbox", OURS, PEER),
    Comparison("relay, beside faststream-outbox, tuned", OURS, PEER_TUNED),
    Comparison("2 relay processes, beside 1", "2 relay processes", "1 relay process", ">= 1"),
    Comparison("4 relay processes, beside 1", "4 relay processes", "1 relay process"),
    *(
        Comparison(
            f"commit to consumer, {ours}, {rate} events/s, {step}, beside faststream-outbox, tuned",
            f"{ours}, {rate} events/s, {step}",
            f"faststream-outbox, tuned, {rate} events/s, {step}",
            "<= 1",
        )
        for rate in ("1", "100", "1,000")
        for step in ("p50", "p99")
        for ours in list(RELAYS)[:2]
    ),
    Comparison("memory, 100 times the backlog", f"{LARGE}, most", f"{SMALL}, most", "<= 1.25"),
    *(
        Comparison(f"{n} times the rows", f"relay, growth x{n}", "relay, growth x1", "", True)
        for n in (10, 100)
    ),
]

if __name__ == "__main__":
    area = Area("outbox", "Outbox", __doc__ or "", COMPARISONS)
    run(area, plan, database_pool_size=50)  # the peer holds a connection for each worker
