"""Drill 8: a broker that asks who one is."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dev.kafka import KafkaCluster, SaslSsl
from drills import service
from drills.conftest import MakeBench

WRONG = "not-the-password"


@pytest.fixture(scope="module")
def secured(drills_folder: Path) -> Iterator[KafkaCluster]:
    cluster = KafkaCluster(drills_folder / "secured", security=SaslSsl(), fresh=True)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.kill()


def settings(cluster: KafkaCluster, password: str) -> dict[str, str]:
    """What an operator sets, by the names in `.env.example`."""
    assert cluster.security is not None
    return {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SASL_USERNAME": cluster.security.username,
        "KAFKA_SASL_PASSWORD": password,
        "KAFKA_SSL_CAFILE": str(cluster.ca_file),
    }


async def test_scram_over_tls_with_the_documented_settings(
    bench_of: MakeBench, secured: KafkaCluster
) -> None:
    """Topics, worker, poison and dead letters over SASL_SSL."""
    assert secured.security is not None
    chosen = settings(secured, secured.security.password)
    bench = await bench_of("poison", secured.bootstrap_servers, topics=False, **chosen)
    bench.app("topics", "create")
    worker = bench.worker()
    await worker.is_ready()
    await bench.feed(200)
    poison = await bench.send([bench.event("permanent") for _ in range(5)])
    await bench.settled(but=poison)
    await bench.check(but=poison)
    assert secured.security.password not in worker.log.read_text()


async def test_wrong_password_gives_one_clear_line_and_not_ready(
    bench_of: MakeBench, secured: KafkaCluster
) -> None:
    """The worker stays up, says what is wrong once for each of its parts, and is not ready."""
    chosen = settings(secured, WRONG)
    bench = await bench_of("single", secured.bootstrap_servers, topics=False, **chosen)
    worker = bench.worker()
    await asyncio.sleep(8)
    status, said = await worker.readiness()
    assert status == 503, said
    for part in ["producer", "consumer single"]:
        assert "authentication failed" in said["checks"][part].lower(), said
    assert (await worker.liveness())[0] == 200
    for message in ["producer cannot connect, trying on", "consumer waits"]:
        lines = worker.logged(message)
        assert len(lines) == 1, lines
        assert "authentication failed" in str(lines[0]).lower(), lines
        assert "KAFKA_SASL_PASSWORD" in str(lines[0]), lines
    assert worker.strays() == []
    assert WRONG not in worker.log.read_text()

    command = service.run("topics", "list", environment=bench.environment)
    assert command.returncode == 1
    assert len(command.stdout.strip().splitlines()) == 1, command.stdout
    assert "authentication failed" in command.stdout.lower(), command.stdout
    assert WRONG not in command.stdout
