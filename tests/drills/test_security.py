"""Drill 8: a broker that asks who one is."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import (  # what the package names, it does not export to mypy
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
)
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.keystore import SaslSsl
from app.platform.dev.process import LOOPBACK
from drills import service
from drills.bench import eventually
from drills.conftest import MakeBench

WRONG = "not-the-password"


@pytest.fixture(scope="module")
def secured(drills_folder: Path) -> Iterator[KafkaCluster]:
    cluster = KafkaCluster(
        drills_folder / "secured",
        security=SaslSsl(),
        settings={
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "super.users": "User:ANONYMOUS",  # on the listener between brokers
        },
        fresh=True,
    )
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.kill()


def settings(cluster: KafkaCluster, password: str) -> dict[str, str]:
    """The settings of an operator, by the names in `.env.example`."""
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
    for message in ["producer connection failed", "consumer blocked"]:
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


def deny_describe(cluster: KafkaCluster, topic: str) -> AclBinding:
    """Hide `topic` from the service's user, who may do everything else."""
    assert cluster.security is not None
    binding = AclBinding(
        ResourceType.TOPIC,
        topic,
        ResourcePatternType.LITERAL,
        f"User:{cluster.security.username}",
        "*",
        AclOperation.DESCRIBE,
        AclPermissionType.DENY,
    )
    admin = superuser(cluster)  # ends what it was asked for when nothing refers to it any more
    for created in admin.create_acls([binding]).values():
        created.result(timeout=20)
    return binding


def allow_again(cluster: KafkaCluster, binding: AclBinding) -> None:
    only = AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )
    admin = superuser(cluster)
    for deleted in admin.delete_acls([only]).values():
        assert deleted.result(timeout=20)


def superuser(cluster: KafkaCluster) -> AdminClient:
    port = cluster._brokers[1].internal_port
    return AdminClient({"bootstrap.servers": f"{LOOPBACK}:{port}"})


async def test_a_topic_that_the_user_may_not_describe_is_not_missing(
    bench_of: MakeBench, secured: KafkaCluster
) -> None:
    """Commands and readiness name the topic and the right that is missing, and say nothing of
    making it; with the right, the worker goes on by itself."""
    assert secured.security is not None
    chosen = settings(secured, secured.security.password)
    bench = await bench_of("single", secured.bootstrap_servers, topics=False, **chosen)
    bench.app("topics", "create")
    binding = deny_describe(secured, bench.topic)

    check = await eventually(
        lambda: asyncio.to_thread(service.run, "topics", "check", environment=bench.environment),
        lambda done: done.returncode != 0,
    )
    assert f"hidden    {bench.topic}  " in check.stdout
    assert "not authorized to describe it" in check.stdout
    tail = service.run("events", "tail", bench.topic, environment=bench.environment)
    assert tail.returncode == 1
    assert f"not authorized to describe {bench.topic}: grant" in tail.stdout, tail.stdout

    worker = bench.worker()
    said = await eventually(
        worker.readiness, lambda answer: "not authorized" in str(answer[1]), seconds=40
    )
    assert bench.topic in said[1]["checks"]["consumer single"], said
    assert "topics create" not in said[1]["checks"]["consumer single"], said
    allow_again(secured, binding)
    await worker.is_ready()
    assert "all topics exist" in bench.app("topics", "check")
