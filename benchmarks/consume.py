"""Consuming with effects in PostgreSQL: the gain of group commit, lanes and batch handlers.

All sides read the same kind of messages from one real Kafka and write to one real PostgreSQL, in one
process set up as `app worker` sets itself up (uvloop, garbage collector).

- *one transaction per message*: the same handler, inbox and codec in a loop written by hand; the
  offsets are committed once a fetch, which favours it.
- *group commit*, *lanes*, *batch handler*: the service's consumer; a batch handler with what it is
  given by default (2,000), and held to 500 as the others are.
- *FastStream, a session per message*: its subscriber as its documentation shows it, with a session
  opened in the handler. It has no inbox and commits offsets by itself before the handler is done,
  which favours it: what it promises is less.
- *floor*: aiokafka's getmany, json.loads, one INSERT ... SELECT FROM unnest by asyncpg alone, then
  the offsets: no inbox, no validation, no ORM, no retries. The fastest floor counts.
- *10 ms*: handlers that wait 10 ms for something else before they write.
- *worker processes*: one, two or four of them in one consumer group, each a process as `app worker`
  is, with one lane, on a topic of four partitions. All have their partitions, and a lock keeps them
  from handling anything until all messages are there.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiokafka import AIOKafkaConsumer
from faststream.kafka import KafkaBroker
from harness import TRACE, Counted, Running, Side, Stage, Watch, counted, process, run, until_ready
from results import Area, Comparison, Figures
from sqlalchemy import BigInteger, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.events.event import BaseEvent, EventRegistry, EventType
from app.platform.health import Health
from app.platform.http.server import serve
from app.platform.kafka.codec import Message, decode, encode
from app.platform.kafka.consumers import consuming
from app.platform.kafka.inbox import claim
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.runtime import Configuration
from app.platform.service import Component, Role, Service


class Effect(Base):
    """The table that the handlers write."""

    __tablename__ = "benchmark_effects"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(String)
    number: Mapped[int] = mapped_column(Integer)


ONE_ROW = text("INSERT INTO benchmark_effects (name, number) VALUES (:name, :number)")
MANY_ROWS = text(
    "INSERT INTO benchmark_effects (name, number)"
    " SELECT * FROM unnest(CAST(:names AS text[]), CAST(:numbers AS int[]))"
)
NEWEST = "SELECT max(id) FROM benchmark_effects"
COUNT = "SELECT count(*) FROM benchmark_effects"

FLOOR = """
    INSERT INTO benchmark_effects (name, number) SELECT * FROM unnest($1::text[], $2::int[])
"""


async def one_row(event: Counted, uow: UnitOfWork) -> None:
    await uow.session.execute(ONE_ROW, {"name": event.name, "number": event.number})


async def many_rows(events: list[Counted], uow: UnitOfWork) -> None:
    columns = {"names": [e.name for e in events], "numbers": [e.number for e in events]}
    await uow.session.execute(MANY_ROWS, columns)


async def slow_row(event: Counted, uow: UnitOfWork) -> None:
    await asyncio.sleep(0.01)
    await one_row(event, uow)


class Silent:
    """A publisher for handlers that publish nothing."""

    async def publish(self, event: BaseEvent) -> None:
        raise AssertionError(event)

    async def has_committed(self, error: BaseException) -> bool:
        return False

    async def after_commit(self) -> None:
        pass


class Bench:
    """A topic full of messages for each measurement."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.connection = stage.connection
        self.units = UnitOfWorkFactory(stage.database.sessions, lambda _session: Silent())

    @asynccontextmanager
    async def filled_topic(
        self, messages: int, subscription: Subscription
    ) -> AsyncIterator[tuple[KafkaSettings, EventRegistry, KafkaProducer]]:
        settings, registry = await self.empty_topic(subscription)
        async with KafkaProducer(settings).running() as producer:
            await fill(producer, registry, messages)
            yield settings, registry, producer

    async def empty_topic(
        self, subscription: Subscription, **options: int
    ) -> tuple[KafkaSettings, EventRegistry]:
        await self.stage.truncate("inbox", "benchmark_effects")
        return await self.stage.topics([EventType(Counted)], [subscription], **options)

    async def until_applied(self, messages: int) -> None:
        # The newest id is one step in an index; to count the rows each time would slow what is
        # measured down more than anything in it does.
        while (await self.connection.fetchval(NEWEST) or 0) < messages:
            await asyncio.sleep(0.01)
        while (count := await self.connection.fetchval(COUNT)) < messages:
            await asyncio.sleep(0.01)
        assert count == messages, f"{count} effects of {messages} messages"


Change = Callable[[Message, int], Message]


def unchanged(message: Message, _number: int) -> Message:
    return message


async def fill(
    producer: KafkaProducer, registry: EventRegistry, messages: int, change: Change = unchanged
) -> None:
    events = counted(messages)
    for start in range(0, messages, 5_000):
        part = enumerate(events[start : start + 5_000], start)
        outcomes = await producer.send_all(
            [change(encode(e, registry, TRACE), number) for number, e in part]
        )
        assert not any(outcomes), outcomes


Measure = Callable[[Bench, int], Awaitable[Figures]]


def service(subscription: Subscription) -> Measure:
    """Run the service's consumer, from joining the group to the last commit."""

    async def measure(bench: Bench, messages: int) -> Figures:
        async with (
            bench.filled_topic(messages, subscription) as (settings, registry, producer),
            consuming([subscription], registry, settings, bench.units, producer, Health()) as (
                consumer,
            ),
        ):
            while not consumer.status.assigned:
                await asyncio.sleep(0.001)
            watch = Watch()
            await bench.until_applied(messages)
            return watch.figures(messages)

    return measure


def plain(work: Callable[[Bench, EventRegistry, list], Awaitable[None]], at_once: int) -> Measure:
    """Run a hand-written loop of getmany, `work` and commit."""
    subscription = Subscription("bench", {Counted: one_row})

    async def measure(bench: Bench, messages: int) -> Figures:
        async with bench.filled_topic(messages, subscription) as (settings, registry, _):
            consumer = AIOKafkaConsumer(
                registry.topic(Counted),
                bootstrap_servers=settings.kafka_bootstrap_servers,
                group_id=settings.kafka_group_id,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
            )
            await consumer.start()
            try:
                watch = Watch()
                seen = 0
                while seen < messages:
                    batch = await consumer.getmany(timeout_ms=500, max_records=at_once)
                    records = [record for part in batch.values() for record in part]
                    if records:
                        await work(bench, registry, records)
                        await consumer.commit()
                    seen += len(records)
                return watch.figures(messages)
            finally:
                await consumer.stop()

    return measure


def one_transaction_each(handler: Callable[[Counted, UnitOfWork], Awaitable[None]]) -> Measure:
    async def work(bench: Bench, registry: EventRegistry, records: list) -> None:
        for record in records:
            event = decode(record.topic, record.value, registry)
            assert isinstance(event, Counted)
            async with bench.units.begin() as uow:
                if await claim(uow.session, "bench", [event.event_id]):
                    await handler(event, uow)

    return plain(work, 500)


def faststream(seconds: float = 0.0, **options: int) -> Measure:
    subscription = Subscription("bench", {Counted: one_row})

    async def measure(bench: Bench, messages: int) -> Figures:
        async with bench.filled_topic(messages, subscription) as (settings, registry, _):
            broker = KafkaBroker(settings.kafka_bootstrap_servers, logger=None)
            sessions = bench.stage.database.sessions
            begun = asyncio.Event()

            @broker.subscriber(
                registry.topic(Counted),
                group_id=settings.kafka_group_id,
                auto_offset_reset="earliest",
                **options,
            )
            async def handle(event: Counted) -> None:
                begun.set()
                if seconds:
                    await asyncio.sleep(seconds)
                async with sessions() as session, session.begin():
                    await session.execute(ONE_ROW, {"name": event.name, "number": event.number})

            await broker.start()
            try:
                await asyncio.wait_for(begun.wait(), 60)
                watch = Watch()
                await asyncio.wait_for(bench.until_applied(messages), 120)
                return watch.figures(messages)
            finally:
                await broker.stop()

    return measure


async def multi_row_insert(bench: Bench, registry: EventRegistry, records: list) -> None:
    rows = [json.loads(record.value) for record in records]
    names, numbers = [row["name"] for row in rows], [row["number"] for row in rows]
    await bench.connection.execute(FLOOR, names, numbers)


def subscription(handler: object, **options: object) -> Subscription:
    return Subscription("bench", {Counted: handler}, **options)  # type: ignore[dict-item,arg-type]


BATCH = service(subscription(many_rows, batch=True))

# Workers in processes of their own

WORK = {
    "quick": subscription(one_row),
    "slow": subscription(slow_row),
    "bulk": subscription(many_rows, batch=True),
}


def work(name: str, port: int) -> None:
    """Run a process like `app worker`, with that subscription instead of the service's own."""
    part = Component("bench", events=[EventType(Counted)], subscriptions=[WORK[name]])
    serve(Service([part]), {Role.WORKER}, Configuration.from_environment(), "127.0.0.1", port)


@asynccontextmanager
async def workers(
    bench: Bench, count: int, name: str, settings: KafkaSettings, **environment: str
) -> AsyncIterator[list[Running]]:
    """Run `count` worker processes that share the partitions."""
    command = [sys.executable, __file__, "--work", name]
    group = {"SERVICE_NAME": settings.kafka_group_id, "KAFKA_GROUP_ID": settings.kafka_group_id}
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(process(bench.stage, *command, **group, **environment))
            for _ in range(count)
        ]
        await until_ready(*started)
        yield started


def worker_processes(
    count: int, name: str, change: Change = unchanged, **environment: str
) -> Measure:
    """Handle messages that `change` has changed."""

    async def measure(bench: Bench, messages: int) -> Figures:
        settings, registry = await bench.empty_topic(WORK[name], kafka_topic_partitions=4)
        async with (
            KafkaProducer(settings).running() as producer,
            workers(bench, count, name, settings, **environment) as started,
        ):
            async with bench.connection.transaction():
                await bench.connection.execute("LOCK TABLE inbox IN EXCLUSIVE MODE")
                await fill(producer, registry, messages, change)
                watch = Watch(*started)
            await bench.until_applied(messages)
            return watch.figures(messages)

    return measure


# name, messages in a round, what runs
SIDES: list[tuple[str, int, Measure]] = [
    ("one transaction per message", 2_000, one_transaction_each(one_row)),
    ("FastStream, a session per message", 2_000, faststream()),
    ("group commit", 10_000, service(subscription(one_row))),
    ("group commit, 2 lanes", 10_000, service(subscription(one_row, concurrency=2))),
    ("group commit, 4 lanes", 10_000, service(subscription(one_row, concurrency=4))),
    ("group commit, 8 lanes", 10_000, service(subscription(one_row, concurrency=8))),
    ("batch handler", 60_000, BATCH),
    (
        "batch handler, 2 lanes",
        60_000,
        service(subscription(many_rows, batch=True, concurrency=2)),
    ),
    (
        "batch handler, batches of 500",
        60_000,
        service(subscription(many_rows, batch=True, batch_size=500)),
    ),
    ("floor, batches of 2,000", 60_000, plain(multi_row_insert, 2_000)),
    ("floor, batches of 500", 60_000, plain(multi_row_insert, 500)),
    ("10 ms, one transaction per message", 200, one_transaction_each(slow_row)),
    ("10 ms, FastStream", 200, faststream(0.01)),
    ("10 ms, 1 lane", 400, service(subscription(slow_row))),
    ("10 ms, 4 lanes", 1_200, service(subscription(slow_row, concurrency=4))),
    ("10 ms, 8 lanes", 2_000, service(subscription(slow_row, concurrency=8))),
    ("1 worker process", 20_000, worker_processes(1, "quick")),
    ("2 worker processes", 20_000, worker_processes(2, "quick")),
    ("4 worker processes", 20_000, worker_processes(4, "quick")),
    ("10 ms, 1 worker process", 400, worker_processes(1, "slow")),
    ("10 ms, 2 worker processes", 800, worker_processes(2, "slow")),
    ("10 ms, 4 worker processes", 1_600, worker_processes(4, "slow")),
    ("batch handler, growth x1", 2_000, BATCH),
    ("batch handler, growth x10", 20_000, BATCH),
    ("batch handler, growth x100", 200_000, BATCH),
]


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    async with stage.database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    bench = Bench(stage)

    def side(name: str, messages: int, measure: Measure) -> Side:
        count = max(1, int(messages * scale))
        rounds = 2 if "growth" in name else 9
        return Side(name, "messages/s", lambda: measure(bench, count), rounds)

    yield [side(*entry) for entry in SIDES]


ONE, BULK, FLOORS = SIDES[0][0], "batch handler", [n for n, *_ in SIDES if n.startswith("floor")]
LANES = ["group commit, 2 lanes", "group commit, 4 lanes", "group commit, 8 lanes"]
SLOW = "10 ms, one transaction per message"
COMPARISONS = [
    Comparison("group commit, beside one transaction per message", "group commit", ONE, ">= 6"),
    Comparison("the best lanes, beside one transaction per message", LANES, ONE, ">= 8"),
    Comparison("batch handler, beside one transaction per message", BULK, ONE, ">= 66"),
    Comparison("batch handler, beside the floor", BULK, FLOORS, ">= 0.5"),
    Comparison("batch handler, 2 lanes, beside the floor", "batch handler, 2 lanes", FLOORS),
    Comparison("batches of 500, beside the floor", "batch handler, batches of 500", FLOORS),
    Comparison("group commit, beside FastStream", "group commit", SIDES[1][0]),
    Comparison("the best lanes, beside FastStream", LANES, SIDES[1][0]),
    *(
        Comparison(f"10 ms handler, {lanes}, beside one after the other", f"10 ms, {lanes}", SLOW)
        for lanes in ("1 lane", "4 lanes", "8 lanes")
    ),
    Comparison("10 ms handler, 8 lanes, beside FastStream", "10 ms, 8 lanes", "10 ms, FastStream"),
    Comparison("2 worker processes, beside 1", "2 worker processes", "1 worker process", ">= 1"),
    Comparison("4 worker processes, beside 1", "4 worker processes", "1 worker process"),
    *(
        Comparison(
            f"10 ms handler, {n} worker processes, beside 1",
            f"10 ms, {n} worker processes",
            "10 ms, 1 worker process",
            goal,
        )
        for n, goal in ((2, ">= 1.6"), (4, ">= 3"))
    ),
    *(
        Comparison(
            f"{n} times the messages", f"{BULK}, growth x{n}", f"{BULK}, growth x1", "", True
        )
        for n in (10, 100)
    ),
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--work", choices=WORK)
    parser.add_argument("--port", type=int)
    arguments, _ = parser.parse_known_args()
    if arguments.work:
        work(arguments.work, arguments.port)
    else:
        run(Area("consume", "Consuming with effects", __doc__ or "", COMPARISONS), plan)
