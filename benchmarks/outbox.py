"""The outbox: what its relay sends a second, how soon, and what publishing costs a request.

Run in the environment of a rendered service that has the module (`python benchmarks/outbox.py`
there). All sides work on the same rows, one real Kafka and one real PostgreSQL with fsync on, in
turns; the medians of the rounds are compared.
"""

import argparse
import asyncio
import gc
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from aiokafka import AIOKafkaProducer
from pydantic import SecretStr
from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app import logs, wiring
from app.database import Database, DatabaseSettings
from app.dev.process import free_port
from app.dev.servers import Servers
from app.kafka.admin import provision
from app.kafka.codec import Message
from app.kafka.event import BaseEvent, EventRegistry, EventType
from app.kafka.producer import KafkaProducer, Outcome
from app.kafka.settings import KafkaSettings
from app.kafka.topics import wanted
from app.migrate import upgrade
from app.outbox.model import HEADER_COLUMNS, OutboxRow, as_message
from app.outbox.publisher import OutboxPublisher
from app.outbox.relay import Relay
from app.outbox.settings import OutboxSettings
from app.unit_of_work import BindPublisher, UnitsOfWork

KEYS = 500
CONNECTIONS = 8
SEND_SECONDS = 60.0


class Counted(BaseEvent):
    """An event of a usual size."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["thing.counted"] = "thing.counted"
    name: str
    number: int
    comment: str = "x" * 200


@dataclass
class Bench:
    """Servers, and an outbox full of rows for each measurement."""

    database: Database
    bootstrap_servers: str

    @asynccontextmanager
    async def filled(self, rows: int) -> AsyncIterator["Filled"]:
        name = f"bench-{secrets.token_hex(4)}"
        settings = KafkaSettings(
            kafka_bootstrap_servers=self.bootstrap_servers,
            kafka_client_id=name,
            kafka_send_timeout_seconds=SEND_SECONDS,
            _env_file=None,
        )
        registry = EventRegistry(name, [EventType(Counted)])
        await provision(settings, wanted(settings, registry, []))
        async with self.database.engine.begin() as connection:
            await connection.execute(text("TRUNCATE outbox, outbox_parked"))
        filled = Filled(self.database, settings, registry, asyncio.Event())
        for start in range(0, rows, 1000):
            await filled.write(range(start, min(start + 1000, rows)))
        async with self.database.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("VACUUM ANALYZE outbox"))
            await connection.execute(text("CHECKPOINT"))
        yield filled


@dataclass
class Filled:
    """Rows of one measurement, and how to reach them."""

    database: Database
    settings: KafkaSettings
    registry: EventRegistry
    published: asyncio.Event

    @property
    def units(self) -> UnitsOfWork:
        limit = self.settings.kafka_max_message_bytes

        def bind(session: AsyncSession) -> OutboxPublisher:
            settings = OutboxSettings(_env_file=None)
            return OutboxPublisher(session, self.registry, settings, limit, self.published)

        return UnitsOfWork(self.database.sessions, bind)

    async def write(self, numbers: Sequence[int]) -> None:
        async with self.units.begin() as uow:
            for number in numbers:
                await uow.events.publish(Counted(name=f"key-{number % KEYS}", number=number))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AIOKafkaProducer]:
        """A producer with the options of ours."""
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
        async with self.database.sessions() as session:
            rows = await session.scalars(select(OutboxRow).order_by(OutboxRow.id))
            return [message_of(row) for row in rows]

    async def until_empty(self) -> None:
        while True:
            async with self.database.engine.connect() as connection:
                if not await connection.scalar(text("SELECT EXISTS (SELECT FROM outbox)")):
                    return
            await asyncio.sleep(0.04)


def message_of(row: OutboxRow) -> Message:
    columns = tuple(getattr(row, column) for column in HEADER_COLUMNS.values())
    return as_message(row.topic, row.key, row.value, json.dumps(row.headers), columns)


Side = Callable[[Bench, int], Awaitable[float]]


async def one_by_one(bench: Bench, rows: int) -> float:
    """As the guide does it: take a row, await its send, commit, take the next."""
    async with bench.filled(rows) as filled, filled.client() as client:
        left = rows
        started = time.perf_counter()
        async with bench.database.sessions() as session:
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
        return rows / (time.perf_counter() - started)


async def plain_sending(bench: Bench, rows: int) -> float:
    """No outbox at all: the same bytes and headers, from memory, send and gather."""
    async with bench.filled(rows) as filled, filled.client() as client:
        messages = await filled.messages()
        started = time.perf_counter()
        acknowledged = [
            await client.send(m.topic, m.value, m.key, headers=list(m.headers)) for m in messages
        ]
        await asyncio.gather(*acknowledged)
        return rows / (time.perf_counter() - started)


def relay(**options: int) -> Side:
    """The service's relay, from its start to an empty outbox."""

    async def measure(bench: Bench, rows: int) -> float:
        async with (
            bench.filled(rows) as filled,
            KafkaProducer(filled.settings).running() as producer,
        ):
            await producer.ping()
            settings = OutboxSettings(_env_file=None, **options)
            sender = Relay(
                bench.database.engine, producer, settings, SEND_SECONDS, filled.published
            )
            started = time.perf_counter()
            async with sender.running(stop_seconds=5):
                await filled.until_empty()
                return rows / (time.perf_counter() - started)

    return measure


# name, rows in a round, what runs
SIDES: list[tuple[str, int, Side]] = [
    ("one row, one send, one commit", 2_000, one_by_one),
    ("relay", 60_000, relay()),
    ("relay, 1 task", 60_000, relay(outbox_relay_tasks=1)),
    ("plain send and gather", 60_000, plain_sending),
]


class Timed(KafkaProducer):
    """Notes when each message was acknowledged."""

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(settings)
        self.acknowledged: dict[bytes | None, float] = {}

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        outcomes = await super().send_all(messages)
        now = time.perf_counter()
        self.acknowledged.update((message.value, now) for message in messages)
        return outcomes


async def latencies(bench: Bench, events: int = 200) -> list[float]:
    """Milliseconds from commit to acknowledgement, one event every 50 ms, in one process."""
    async with bench.filled(0) as filled, Timed(filled.settings).running() as producer:
        assert isinstance(producer, Timed)
        await producer.ping()
        sender = Relay(
            bench.database.engine,
            producer,
            OutboxSettings(_env_file=None),
            SEND_SECONDS,
            filled.published,
        )
        committed: dict[bytes, float] = {}
        async with sender.running(stop_seconds=5):
            for number in range(events):
                event = Counted(name=f"key-{number}", number=number)
                async with filled.units.begin() as uow:
                    await uow.events.publish(event)
                committed[event.model_dump_json().encode()] = time.perf_counter()
                await asyncio.sleep(0.05)
            await filled.until_empty()
    return [(producer.acknowledged[value] - at) * 1000 for value, at in committed.items()]


# Requests, over HTTP, to a process of its own

VARIANTS = {
    "no publishing": ("api", "silent"),
    "outbox": ("api", "outbox"),
    "outbox, relay in the same process": ("api,relay", "outbox"),
}


class Silent:
    """Takes every event and does nothing with it."""

    async def publish(self, event: BaseEvent) -> None: ...

    async def committed(self) -> None: ...


def serve(port: int, roles: str, publisher: str) -> None:
    from app.main import create_app
    from app.runtime import Role
    from app.server import listen, run

    def bind_silent(*_resources: object) -> BindPublisher:
        return lambda _session: Silent()

    if publisher == "silent":
        wiring.bind_publisher = bind_silent
    logs.configure("WARNING", "json")
    run(create_app({Role(role) for role in roles.split(",")}), listen("127.0.0.1", port))


async def requests(bench: Bench, slices: int, seconds: float) -> dict[str, list[float]]:
    """POST /orders a second, by variant. They take turns every few seconds, so that whatever else
    the machine does hits all of them."""
    async with AsyncExitStack() as stack:
        ports = {name: await stack.enter_async_context(process(bench, name)) for name in VARIANTS}
        for port in ports.values():
            await load(port, 1.0)
        found: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(slices):
            for name, port in ports.items():
                found[name].append(await load(port, seconds))
        return found


@asynccontextmanager
async def process(bench: Bench, variant: str) -> AsyncIterator[int]:
    """A process of the service, with a database and topics of its own; its port."""
    roles, publisher = VARIANTS[variant]
    name = f"bench_{secrets.token_hex(4)}"
    settings = KafkaSettings(kafka_bootstrap_servers=bench.bootstrap_servers, _env_file=None)
    await provision(settings, wanted(settings, EventRegistry(name, wiring.EVENTS), []))
    server = bench.database.engine.url.set(drivername="postgresql")
    url = server.set(database=name).render_as_string(hide_password=False)
    async with bench.database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(f"CREATE DATABASE {name}"))
    await upgrade(url)
    database = Database(DatabaseSettings(database_url=SecretStr(url), _env_file=None))
    async with database.engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO users (id, email, username) VALUES (1, 'a@example.com', 'a')")
        )
    await database.close()
    port = free_port()
    environment = {
        "SERVICE_NAME": name,
        "DATABASE_URL": url,
        "KAFKA_BOOTSTRAP_SERVERS": bench.bootstrap_servers,
    }
    running = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(port), roles, publisher],
        env={**os.environ, **environment},
    )
    try:
        await is_up(port)
        yield port
    finally:
        running.terminate()
        running.wait()


async def is_up(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


async def load(port: int, seconds: float) -> float:
    until = time.perf_counter() + seconds
    counts = await asyncio.gather(*(one_client(port, until, n) for n in range(CONNECTIONS)))
    return sum(counts) / seconds


async def one_client(port: int, until: float, number: int) -> int:
    item = {"sku": f"sku-{number}", "quantity": 2, "unit_price": "9.50"}
    body = json.dumps({"user_id": 1, "items": [item]}).encode()
    head = f"POST /orders HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    done = 0
    while time.perf_counter() < until:
        writer.write(request)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 201"), answer
        length = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        done += 1
    writer.close()
    return done


@dataclass
class Results:
    """What every round gave, by side."""

    rates: dict[str, list[float]]
    latencies: list[float]
    requests: dict[str, list[float]]


async def measure(rounds: int, scale: float) -> Results:
    results = Results({}, [], {})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with Servers(Path(folder), "kafka", fresh=True, fsync=True) as servers:
            await upgrade(servers.database_url)
            url = SecretStr(servers.database_url)
            database = Database(DatabaseSettings(database_url=url, _env_file=None))
            bench = Bench(database, servers.kafka_bootstrap_servers)
            for number in range(1, rounds + 1):
                for name, rows, side in SIDES:
                    rate = await side(bench, int(rows * scale))
                    results.rates.setdefault(name, []).append(rate)
                    print(f"round {number}: {name}: {rate:,.0f} rows/s", flush=True)
                results.latencies += await latencies(bench)
                for variant, rates in (await requests(bench, 6, 2 * scale)).items():
                    results.requests.setdefault(variant, []).extend(rates)
                    median = statistics.median(rates)
                    print(f"round {number}: POST /orders, {variant}: {median:,.0f}/s", flush=True)
            await database.close()
    return results


def report(results: Results) -> None:
    medians = {name: statistics.median(rates) for name, rates in results.rates.items()}
    first, *_, plain = (name for name, _, _ in SIDES)
    print(f"\n{'sending':<36}{'rows/s':>10}{'spread':>18}{'x guide':>9}{'x plain':>9}")
    for name, median in medians.items():
        spread = f"{min(results.rates[name]):,.0f}-{max(results.rates[name]):,.0f}"
        by_guide, by_plain = median / medians[first], median / medians[plain]
        print(f"{name:<36}{median:>10,.0f}{spread:>18}{by_guide:>9.1f}{by_plain:>9.2f}")
    steps = statistics.quantiles(results.latencies, n=100)
    print(
        f"\ncommit to acknowledgement, one process, 20 events/s: p50 {steps[49]:.1f} ms,"
        f" p95 {steps[94]:.1f} ms, p99 {steps[98]:.1f} ms"
    )
    base = statistics.median(results.requests["no publishing"])
    print(f"\n{'POST /orders':<36}{'req/s':>10}{'spread':>18}{'x without':>9}")
    for name, rates in results.requests.items():
        median = statistics.median(rates)
        spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
        print(f"{name:<36}{median:>10,.0f}{spread:>18}{median / base:>9.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies rows and times.")
    parser.add_argument("--serve", nargs=3, metavar=("PORT", "ROLES", "PUBLISHER"))
    arguments = parser.parse_args()
    if arguments.serve:
        serve(int(arguments.serve[0]), arguments.serve[1], arguments.serve[2])
    else:
        import uvloop

        logs.configure("WARNING", "json")
        gc.collect()
        gc.freeze()  # as the service's processes do
        gc.set_threshold(10_000)
        report(uvloop.run(measure(arguments.rounds, arguments.scale)))
