"""The cost of the question that a publishing transaction asks before its COMMIT (decision 0020).

A transaction inserts a row and publishes one event, without the outbox. The sides differ only in the question. The
database commits with fsync on, over the loopback, where a round trip is cheapest: add that of your network.

- *database alone*: the producer is a fake that acknowledges at once, which shows the most that the
  question can cost.
- *Kafka*: the service's producer and one broker with acks=all, as in a service.
- *1 at a time* and *16 at a time*: each transaction begins when one before it has ended.

It is not an area of `nox -s bench`: run it in the environment of a rendered service.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness import Counted, Side, Stage, Watch, counted, run
from results import Area, Comparison, Figures
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.platform.database.commit_outcome import CommitTracker
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventType
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.producer import KafkaProducer, Producer
from app.platform.kafka.publisher import DirectPublisher

_INSERT = text("INSERT INTO written (number) VALUES (:number)")


class NoMark(CommitTracker):
    """Asks for nothing before the commit."""

    def track(self) -> None:
        pass


MARKS = {"with the question": CommitTracker, "without": NoMark}


@asynccontextmanager
async def producing(stage: Stage, against: str) -> AsyncIterator[Producer]:
    if against == "database alone":
        yield FakeProducer()
        return
    async with KafkaProducer(stage.settings("bench")).running() as producer:
        await producer.ping()
        yield producer


def committing(stage: Stage, against: str, at_once: int, mark: str, count: int) -> Side:
    async def measure() -> Figures:
        settings, registry = await stage.topics([EventType(Counted)])
        await stage.truncate("written")
        await stage.settle("written")
        async with producing(stage, against) as producer:

            def bind(session: AsyncSession) -> DirectPublisher:
                limit = settings.kafka_max_message_bytes
                return DirectPublisher(producer, registry, 10.0, limit, MARKS[mark](session))

            units = UnitOfWorkFactory(stage.database.sessions, bind)

            async def write(events: list[Counted]) -> None:
                for event in events:
                    async with units.begin() as uow:
                        await uow.session.execute(_INSERT, {"number": event.number})
                        await uow.events.publish(event)

            events = counted(count, "x" * 200)
            await asyncio.gather(*(write(events[:5]) for _ in range(at_once)))  # connections
            watch = Watch()
            await asyncio.gather(*(write(events[n::at_once]) for n in range(at_once)))
            return watch.figures(count)

    return Side(name_of(against, at_once, mark), "tx/s", measure)


def name_of(against: str, at_once: int, mark: str) -> str:
    return f"{against}, {at_once} at a time, {mark}"


WAYS = [(against, at_once) for against in ("database alone", "Kafka") for at_once in (1, 16)]


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    await stage.connection.execute("CREATE TABLE written (number int)")
    yield [
        committing(stage, against, at_once, mark, int((2_000 if at_once == 1 else 8_000) * scale))
        for against, at_once in WAYS
        for mark in MARKS
    ]


COMPARISONS = [
    Comparison(f"{against}, {at_once} at a time", *(name_of(against, at_once, m) for m in MARKS))
    for against, at_once in WAYS
]

if __name__ == "__main__":
    area = Area("commit", "The question before COMMIT", __doc__ or "", COMPARISONS)
    run(area, plan, database_pool_size=16)
