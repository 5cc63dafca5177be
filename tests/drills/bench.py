"""A drill's own service, database and topics; what was fed to it, and what came of it."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from app.drill import SUBSCRIPTIONS_OF, Echoed, Fault, Ticked, events_on
from app.platform.events.event import BaseEvent, EventRegistry
from app.platform.kafka.admin import provision, read_to_end, reading
from app.platform.kafka.codec import CE_ID, Message, encode
from app.platform.kafka.errors import BrokerUnavailable
from app.platform.kafka.settings import KafkaSettings, client_options
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import required_topics
from app.platform.tracing import Trace
from drills import service
from drills.service import Process

T = TypeVar("T")

Place = tuple[str, int, int]  # topic, partition, offset

KEYS = 12
SEND_SECONDS = 60

TABLES = """
CREATE TABLE effects (
    id bigserial PRIMARY KEY, consumer text, name text, number int, event_id uuid,
    at timestamptz DEFAULT clock_timestamp()
);
CREATE TABLE outage (reason text);
"""


@dataclass(frozen=True)
class Sent:
    """An event that Kafka has acknowledged, and where it is."""

    event: Ticked
    place: Place


@dataclass(frozen=True)
class Effect:
    """A row of the table of effects."""

    consumer: str
    name: str
    number: int
    event_id: UUID


async def eventually(
    probe: Callable[[], Awaitable[T]],
    until: Callable[[T], bool] = bool,
    seconds: float = 30.0,
    what: str = "what was waited for",
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """Call `probe` until its answer satisfies `until`; fail with the last answer after `seconds`.

    `meanwhile` asserts what has to hold at every moment, so that a failure names its cause.
    """
    deadline = time.monotonic() + seconds
    while True:
        if meanwhile is not None:
            await meanwhile()
        answer = await probe()
        if until(answer):
            return answer
        assert time.monotonic() < deadline, (
            f"not within {seconds:g} s: {what}; the last was {answer!r}"
        )
        await asyncio.sleep(0.1)


@dataclass
class Bench:
    """Everything of one drill."""

    settings: KafkaSettings
    database_url: str
    folder: Path
    chosen: str
    environment: dict[str, str]
    processes: list[Process] = field(default_factory=list)
    sent: dict[UUID, Sent] = field(default_factory=dict)
    numbers: int = 0

    @property
    def registry(self) -> EventRegistry:
        return EventRegistry(self.settings.kafka_client_id, events_on(self.shape))

    @property
    def shape(self) -> str:
        """The kind of topic that the events are on: their own, a shared one, or a foreign one."""
        return self.environment.get("DRILL_TOPIC", "")

    @property
    def subscriptions(self) -> Sequence[Subscription]:
        return SUBSCRIPTIONS_OF[self.chosen]

    @property
    def consumers(self) -> list[str]:
        return [subscription.name for subscription in self.subscriptions]

    @property
    def topic(self) -> str:
        return self.registry.topic(Ticked)

    async def create_tables(self) -> None:
        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute(TABLES)
        finally:
            await connection.close()

    async def create_topics(self, but: str | None = None) -> None:
        """Make the topics, without those whose name ends with `but`."""
        topics = required_topics(self.settings, self.registry, self.subscriptions)
        made = [topic for topic in topics if but is None or not topic.name.endswith(but)]
        await provision(self.settings, made)

    # Processes

    def worker(self, name: str = "worker", **environment: str) -> Process:
        """Start `app worker`."""
        return self._process("worker", name, environment)

    def api(self, name: str = "api", **environment: str) -> Process:
        return self._process("api", name, environment)

    def relay(self, name: str = "relay", **environment: str) -> Process:
        """Start `app relay`, in a service with the outbox."""
        return self._process("relay", name, environment)

    def console(self, name: str, **environment: str) -> Process:
        return self._process("console", name, environment)

    def replacement(self, dead: Process, name: str) -> Process:
        """Start another process of the role of `dead`."""
        return self._process(dead.role, name, {})

    def _process(self, role: str, name: str, environment: dict[str, str]) -> Process:
        process = Process(role, name, {**self.environment, **environment}, self.folder)
        self.processes.append(process)
        return process.start()

    def app(self, *arguments: str, **environment: str) -> str:
        """Run `app …`, which must succeed; what it printed."""
        done = service.run(*arguments, environment={**self.environment, **environment})
        assert done.returncode == 0, f"app {' '.join(arguments)}: {done.stdout}"
        return done.stdout

    def stop(self) -> None:
        for process in self.processes:
            process.kill()

    # Feeding

    def event(self, fault: Fault = "") -> Ticked:
        """The next numbered event, for one of many keys."""
        self.numbers += 1
        return Ticked(name=f"key-{self.numbers % KEYS}", number=self.numbers, fault=fault)

    async def feed(self, count: int) -> list[Ticked]:
        """Send `count` good events and wait until Kafka has them."""
        return await self.send([self.event() for _ in range(count)])

    async def send(self, events: Sequence[Ticked]) -> list[Ticked]:
        async with self._producer() as producer:
            await asyncio.gather(*[await self._send(producer, event) for event in events])
        return list(events)

    @asynccontextmanager
    async def feeding(self, rate: float) -> AsyncIterator[None]:
        """Feed good events at `rate` a second for as long as the block lasts."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._feed_until(stop, rate))
        try:
            yield
        finally:
            stop.set()
            await task

    async def _feed_until(self, stop: asyncio.Event, rate: float) -> None:
        period = 0.05
        async with self._producer() as producer:
            acknowledgements = []
            while not stop.is_set():
                for _ in range(max(1, int(rate * period))):
                    acknowledgements.append(await self._send(producer, self.event()))
                with suppress(TimeoutError):
                    async with asyncio.timeout(period):
                        await stop.wait()
            await asyncio.gather(*acknowledgements)

    async def _send(self, producer: AIOKafkaProducer, event: Ticked) -> "asyncio.Task[None]":
        if self.shape:  # between others, which nobody handles
            other = self._message(Echoed(name=event.name, number=event.number))
            await producer.send(other.topic, other.value, other.key, headers=list(other.headers))
        message = self._message(event)
        # The order of these calls is the order in the partition.
        future = await producer.send(
            message.topic, message.value, message.key, headers=list(message.headers)
        )
        if self.shape and event.number % 10 == 0:  # as a sender repeats it after a lost answer
            headers = list(message.headers)
            await producer.send(message.topic, message.value, message.key, headers=headers)
        return asyncio.create_task(self._acknowledged(future, event))

    def _message(self, event: BaseEvent) -> Message:
        message = encode(event, self.registry, Trace("drill"))
        if self.shape != "cloud-events":
            return message
        fields = event.model_dump(mode="json", exclude={*BaseEvent.model_fields})
        return message._replace(value=json.dumps(fields).encode())

    async def _acknowledged(self, future: "asyncio.Future[Any]", event: Ticked) -> None:
        metadata = await future
        place = (metadata.topic, metadata.partition, metadata.offset)
        self.sent[event.event_id] = Sent(event, place)

    async def send_raw(
        self, messages: Sequence[tuple[bytes, bytes | None, Ticked | None]]
    ) -> list[Place]:
        """Send keys and values as they are, and note the events in them; where each one went."""
        async with self._producer() as producer:
            futures = [await producer.send(self.topic, value, key) for key, value, _ in messages]
            sent = await asyncio.gather(*futures)
        places = [(metadata.topic, metadata.partition, metadata.offset) for metadata in sent]
        for (_, _, event), place in zip(messages, places, strict=True):
            if event is not None:
                self.sent[event.event_id] = Sent(event, place)
        return places

    async def send_old(self, topic: str, age_seconds: float) -> None:
        """Send a record that has been in Kafka for so long, as its timestamp says."""
        timestamp = int((time.time() - age_seconds) * 1000)
        async with self._producer() as producer:
            await producer.send_and_wait(topic, b"old", timestamp_ms=timestamp)

    async def repeat(self, records: Sequence[ConsumerRecord]) -> None:
        """Send events that were on a topic once more, each under a new id."""
        async with self._producer() as producer:
            for record in records:
                headers = dict(record.headers)
                old, new = headers[CE_ID], str(uuid4()).encode()
                value = record.value.replace(old, new)
                changed = [*(headers | {CE_ID: new}).items()]
                await producer.send_and_wait(record.topic, value, record.key, headers=changed)

    @asynccontextmanager
    async def _producer(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(
            **client_options(self.settings),
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=SEND_SECONDS * 1000,
        )
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    # Looking

    async def query(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.database_url, timeout=10)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
            return rows
        finally:
            await connection.close()

    async def effects(self, consumer: str) -> list[Effect]:
        """The effects of `consumer`, in the order in which they came about."""
        rows = await self.query(
            "SELECT consumer, name, number, event_id FROM effects WHERE consumer = $1 ORDER BY id",
            consumer,
        )
        return [Effect(*row.values()) for row in rows]

    async def applied(self) -> int:
        """Count the effects of all consumers."""
        return int((await self.query("SELECT count(*) FROM effects"))[0][0])

    async def records(self, topic: str) -> list[ConsumerRecord]:
        async with reading(self.settings, [topic]) as client:
            return [record async for record in read_to_end(client)]

    async def dead_letters(self, consumer: str) -> list[ConsumerRecord]:
        return await self.records(f"{self.topic}.{consumer}.dlq")

    async def count_dead_letters(self) -> int:
        """Of all consumers."""
        return sum([len(await self.dead_letters(consumer)) for consumer in self.consumers])

    async def committed(self, consumer: str) -> dict[TopicPartition, int]:
        """Return the group's committed offsets, of every topic that it reads."""
        group = f"{self.settings.kafka_group_id}.{consumer}"
        admin = AIOKafkaAdminClient(**client_options(self.settings))
        try:
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(group)
        except KafkaError as error:
            raise BrokerUnavailable(str(error)) from error
        finally:
            await admin.close()
        return {tp: offset.offset for tp, offset in offsets.items() if offset.offset >= 0}

    # Comparing

    async def settled(
        self,
        seconds: float = 60.0,
        but: Iterable[Ticked] = (),
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Wait until every consumer has applied every event that was sent, `but` those."""
        expected = self.sent.keys() - {event.event_id for event in but}

        async def missing() -> dict[str, int]:
            rows = await self.query("SELECT DISTINCT consumer, event_id FROM effects")
            found = {(row["consumer"], row["event_id"]) for row in rows}
            return {
                consumer: sum((consumer, event_id) not in found for event_id in expected)
                for consumer in self.consumers
            }

        def none_missing(counts: dict[str, int]) -> bool:
            return not any(counts.values())

        await eventually(missing, none_missing, seconds, "all applied", meanwhile)
        await eventually(self._uncommitted, lambda left: not left, seconds=15)

    async def _uncommitted(self) -> list[str]:
        """Partitions whose last message is handled, but not committed."""
        ends: Counter[tuple[str, int]] = Counter()
        for sent in self.sent.values():
            topic, partition, offset = sent.place
            ends[topic, partition] = max(ends[topic, partition], offset + 1)
        left = []
        for consumer in self.consumers:
            committed = await self.committed(consumer)
            left += [
                f"{consumer}: {topic}[{partition}] at {committed.get(TopicPartition(topic, partition))}, not {end}"
                for (topic, partition), end in ends.items()
                if committed.get(TopicPartition(topic, partition), 0) < end
            ]
        return left

    async def check(self, but: Iterable[Ticked] = ()) -> None:
        """Each event applied exactly once, order by key kept, no dead letter but those of `but`."""
        excluded = {event.event_id for event in but}
        expected = self.sent.keys() - excluded
        for consumer in self.consumers:
            effects = await self.effects(consumer)
            times = Counter(effect.event_id for effect in effects)
            twice = [event_id for event_id, count in times.items() if count > 1]
            assert not twice, f"{consumer}: {len(twice)} events applied more than once"
            lost = expected - times.keys()
            assert not lost, f"{consumer}: {len(lost)} events lost"
            unexpected = times.keys() - expected
            assert not unexpected, f"{consumer}: {len(unexpected)} events applied that should not"
            assert out_of_order(effects) == [], f"{consumer}: order by key not kept"
            letters = await self.dead_letters(consumer)
            assert len(letters) == len(excluded), f"{consumer}: {len(letters)} dead letters"
        await self.check_commits(but)
        for process in self.processes:
            assert process.strays() == [], f"{process.name} printed what is no log entry"

    async def check_commits(self, but: Iterable[Ticked] = ()) -> None:
        """No offset is committed beyond what is done. True at any moment, whatever runs."""
        excluded = {event.event_id for event in but}
        for consumer in self.consumers:
            committed = await self.committed(consumer)  # before the effects, which only grow
            done = {effect.event_id for effect in await self.effects(consumer)} | excluded
            for sent in list(self.sent.values()):
                topic, partition, offset = sent.place
                if offset < committed.get(TopicPartition(topic, partition), 0):
                    assert sent.event.event_id in done, (
                        f"{consumer}: offset {offset} of {topic}[{partition}] is committed,"
                        " but its event is not applied"
                    )


def out_of_order(effects: Sequence[Effect]) -> list[tuple[str, int, int]]:
    """List where a key's numbers go back: key, the number before, and the one that came too late."""
    last: dict[str, int] = {}
    found = []
    for effect in effects:
        before = last.get(effect.name, 0)
        if effect.number <= before:
            found.append((effect.name, before, effect.number))
        last[effect.name] = effect.number
    return found
