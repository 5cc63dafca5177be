"""The steps of docs/outbox.md for Debezium: its SQL, its topic, its file, its calls."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import asyncpg
import pytest
from aiokafka import ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app import wiring
from app.platform.database.migrations import upgrade
from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.postgres import PostgresServer
from app.platform.events.event import EventRegistry
from app.platform.kafka.admin import provision, read_to_end, reading
from app.platform.kafka.codec import CAUSATION_ID, CE_ID, TRACEPARENT, TRACESTATE, Message, encode
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.topics import required_topics
from app.platform.outbox.model import as_row, bucket_of
from app.platform.tracing import Trace, bind_trace, context_of
from app.users.events import UserCreated
from debezium.connect import Connect, Relay

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "outbox.md").read_text()
CONNECTOR = json.loads((ROOT / "docs" / "outbox-debezium.json").read_text())
FIRST_SQL, LAST_SQL = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
HEARTBEATS = re.findall(r"--create --topic (\S+) --partitions 1", PAGE)[0]
CALLS = re.findall(r"curl -X (PUT|DELETE) http://connect:8083(\S+)", PAGE)
PASSWORD = "debezium-password"
INTERVAL = int(CONNECTOR["config"]["heartbeat.interval.ms"]) / 1000
KEYS = 3
CONTEXT = context_of(
    [(TRACESTATE, b"vendor=value"), (TRACEPARENT, f"00-{7:032x}-{9:016x}-01".encode())]
)


class LogicalPostgres(PostgresServer):
    """A PostgreSQL with logical decoding."""

    def _command(self) -> list[str]:
        return [*super()._command(), "-c", "wal_level=logical"]


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    server = LogicalPostgres(ROOT / ".dev" / "debezium" / "postgres", fsync=False, fresh=True)
    with server:
        yield server


@pytest.fixture
def kafka() -> Iterator[KafkaCluster]:
    with KafkaCluster(ROOT / ".dev" / "debezium" / "kafka", fresh=True) as cluster:
        yield cluster


class Story:
    """Events of a few keys, written to the outbox, and their records in Kafka."""

    def __init__(self, url: str, settings: KafkaSettings) -> None:
        self._url = url
        self.settings = settings
        self.registry = EventRegistry(settings.kafka_client_id, wiring.service.events)
        self.written: list[Message] = []

    async def run(self, statements: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._url)
        try:
            if statements.lstrip().startswith("SELECT"):
                rows: list[asyncpg.Record] = await connection.fetch(statements)
                return rows
            await connection.execute(statements)
            return []
        finally:
            await connection.close()

    async def write(self, count: int) -> None:
        """Write each event in a transaction of its own."""
        connection = await asyncpg.connect(self._url)
        try:
            for _ in range(count):
                number = len(self.written)
                user = 1 + number % KEYS
                event = UserCreated(
                    user_id=user, email="a@example.com", username=f"n{number}", phone=None
                )
                trace = Trace(f"c{number}", f"e{number}" if number % 2 else None)
                with bind_trace(trace, CONTEXT if number % 3 else None):
                    message = encode(event, self.registry, trace)
                row = as_row(message, bucket_of(message.topic, message.key or b"", 32))
                row["headers"] = json.dumps(row["headers"])
                columns, places = ", ".join(row), ", ".join(f"${n + 1}" for n in range(len(row)))
                await connection.execute(
                    f"INSERT INTO outbox ({columns}) VALUES ({places})", *row.values()
                )
                self.written.append(message)
        finally:
            await connection.close()

    async def arrived(self, seconds: float = 60) -> list[ConsumerRecord]:
        """Wait until every event is in Kafka; return all records, in order."""
        deadline = time.monotonic() + seconds
        topic = self.registry.topic(UserCreated)
        while True:
            async with reading(self.settings, [topic]) as client:
                records = [record async for record in read_to_end(client)]
            missing = {ids(message.headers) for message in self.written} - {
                ids(record.headers) for record in records
            }
            if not missing:
                return records
            assert time.monotonic() < deadline, f"{len(missing)} events did not arrive"
            await asyncio.sleep(0.5)

    def check(self, records: list[ConsumerRecord], least: int) -> None:
        """Check topic, key, bytes and headers, and the order by key."""
        expected = {ids(message.headers): (n, message) for n, message in enumerate(self.written)}
        firsts: dict[bytes, list[int]] = {}
        seen = set()
        for record in records:
            number, message = expected[ids(record.headers)]
            assert (record.topic, record.key, record.value) == message[:3]
            assert headers(record) == dict(message.headers)
            if number not in seen:
                seen.add(number)
                firsts.setdefault(record.key, []).append(number)
        assert len(records) >= least
        assert len(firsts) == KEYS
        assert [n for n in firsts.values() if any(b < a for a, b in pairwise(n))] == []


def ids(found: object) -> bytes:
    return dict(found)[CE_ID]  # type: ignore[call-overload,no-any-return]


def headers(record: ConsumerRecord) -> dict[str, bytes]:
    """Return the headers without empty ones that the page names."""
    assert len(dict(record.headers)) == len(record.headers)
    return {
        name: value
        for name, value in record.headers
        if not (value is None and name in (CAUSATION_ID, TRACEPARENT, TRACESTATE))
    }


async def test_debezium_takes_over_from_the_relay_and_hands_back(
    postgres: PostgresServer, kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = KafkaSettings(kafka_bootstrap_servers=kafka.bootstrap_servers, _env_file=None)
    story = Story(postgres.url, settings)
    await upgrade(postgres.url)
    await provision(
        settings, required_topics(settings, story.registry, wiring.service.subscriptions)
    )
    servers = {"DATABASE_URL": postgres.url, "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}

    await story.write(30)
    with Relay(servers):
        await story.arrived()

    await story.write(150)
    # As in a busy table: rows of one key are not stored in the order of their ids.
    await story.run("UPDATE outbox SET attempts = 1 WHERE id % 2 = 0")
    await story.run(FIRST_SQL.replace("…", PASSWORD))
    await create_topic(settings, HEARTBEATS)
    connect = Connect(tmp_path, kafka.bootstrap_servers, secrets_of())
    try:
        connect.start(kafka.log().with_name("log4j2.properties"))
        await begin(connect, postgres.port)
        story.check(await story.arrived(), 180)
        await asyncio.sleep(2.5 * INTERVAL)
        await story.write(30)
        story.check(await story.arrived(), 210)
        await back(connect, story)

        await story.write(30)
        with Relay(servers):
            story.check(await story.arrived(), 240)
        await story.write(30)
        await begin(connect, postgres.port)
        story.check(await story.arrived(), 270)
    finally:
        connect.process.kill()


def secrets_of() -> dict[str, str]:
    return {
        "OUTBOX_DATABASE_HOST": "127.0.0.1",
        "OUTBOX_DATABASE_USER": "debezium",
        "OUTBOX_DATABASE_PASSWORD": PASSWORD,
        "OUTBOX_DATABASE_NAME": "postgres",
    }


async def begin(connect: Connect, port: int) -> None:
    config = CONNECTOR["config"] | {"database.port": str(port)}
    body = CONNECTOR | {"config": config}
    await asyncio.to_thread(connect.call, "POST", "/connectors", body)


async def back(connect: Connect, story: Story) -> None:
    """Do what the page says under "Back to the relay"."""
    assert [method for method, _ in CALLS] == ["PUT", "DELETE", "DELETE"]
    for method, path in CALLS:
        await asyncio.to_thread(until_taken, connect, method, path)
    await story.run(LAST_SQL)


def until_taken(connect: Connect, method: str, path: str) -> None:
    """Repeat the call while Connect is still stopping."""
    deadline = time.monotonic() + 60
    while True:
        try:
            connect.call(method, path)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        else:
            return


async def create_topic(settings: KafkaSettings, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()
