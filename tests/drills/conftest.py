import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.platform.database.migrations import upgrade
from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.postgres import PostgresServer
from app.platform.kafka.settings import KafkaSettings
from drills.bench import Bench

MIGRATED = "migrated"

MakeBench = Callable[..., Awaitable[Bench]]


@pytest.fixture(scope="session")
def drills_folder() -> Path:
    return Path(__file__).parents[1] / ".dev" / "drills"


@pytest.fixture(scope="session")
def servers(drills_folder: Path) -> Iterator[tuple[PostgresServer, KafkaCluster]]:
    """PostgreSQL, fsync on, and one broker. Where they cannot be had, the drills fail."""
    postgres = PostgresServer(drills_folder / "postgres", fsync=True, fresh=True)
    kafka = KafkaCluster(drills_folder / "kafka", fresh=True)
    try:
        with ThreadPoolExecutor(2) as pool:
            for starting in [pool.submit(postgres.start), pool.submit(kafka.start)]:
                starting.result()
        url = postgres.create_database(MIGRATED)
        asyncio.run(upgrade(url))
        yield postgres, kafka
    finally:
        kafka.kill()  # nobody wants the data any more, and an orderly end takes seconds
        postgres.kill()


@pytest.fixture(scope="session")
def postgres(servers: tuple[PostgresServer, KafkaCluster]) -> PostgresServer:
    return servers[0]


@pytest.fixture(scope="session")
def kafka(servers: tuple[PostgresServer, KafkaCluster]) -> KafkaCluster:
    return servers[1]


@pytest.fixture
async def bench_of(
    postgres: PostgresServer, kafka: KafkaCluster, tmp_path: Path
) -> AsyncIterator[MakeBench]:
    """Makes a service with a database, topics and groups of its own, which is gone after the drill."""
    benches: list[Bench] = []

    async def make(
        chosen: str, bootstrap_servers: str | None = None, topics: bool = True, **environment: str
    ) -> Bench:
        name = f"drill-{secrets.token_hex(4)}"
        url = postgres.database_url(name)
        postgres._client("createdb", "--template", MIGRATED, name)
        environment = {
            "SERVICE_NAME": name,
            "DATABASE_URL": url,
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers or kafka.bootstrap_servers,
            "KAFKA_CLIENT_ID": name,
            "KAFKA_GROUP_ID": name,
            "KAFKA_SESSION_TIMEOUT_SECONDS": "3",
            "KAFKA_DRAIN_TIMEOUT_SECONDS": "5",
            "LOG_FORMAT": "json",
            "DRILL_SUBSCRIPTIONS": chosen,
            **environment,
        }
        values = {key.lower(): value for key, value in environment.items()}
        settings = KafkaSettings.model_validate(values)
        bench = Bench(settings, url, tmp_path, chosen, environment)
        benches.append(bench)
        await bench.create_tables()
        if topics:
            await bench.create_topics()
        return bench

    yield make
    for bench in benches:
        bench.stop()
