"""Apache Kafka as `app dev` and the tests run it."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app.platform.dev.errors import FolderInUse, PortTaken
from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.servers import MockBroker

TOPIC = "kept"

LEAVE_BEHIND = """
import os, signal, sys
from pathlib import Path
from app.platform.dev.kafka import KafkaCluster
cluster = KafkaCluster(Path(sys.argv[1]))
cluster.start()
print(cluster.pid(), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[KafkaCluster]:
    """A cluster that is not running yet."""
    cluster = KafkaCluster(tmp_path)
    yield cluster
    cluster.kill()


async def create_topic(servers: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def send(servers: str, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all")
    await producer.start()
    try:
        await producer.send_and_wait(TOPIC, value, partition=0)
    finally:
        await producer.stop()


async def read_one(servers: str) -> bytes | None:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(TOPIC, 0)])
        record = await asyncio.wait_for(consumer.getone(), 20)
        value: bytes | None = record.value
        return value
    finally:
        await consumer.stop()


@pytest.mark.usefixtures("real_kafka")  # skips where its jars cannot be had
async def test_cluster_left_by_a_killed_process_loses_nothing(
    cluster: KafkaCluster,
) -> None:
    command = [sys.executable, "-c", LEAVE_BEHIND, str(cluster.data)]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdin is not None
    leftover = int(await child.stdout.readline())
    servers = f"127.0.0.1:{(cluster.data / 'ports').read_text().split()[0]}"
    await create_topic(servers)
    await send(servers, b"before the kill")
    with pytest.raises(FolderInUse, match=f"is in use by process {child.pid}"):
        cluster.start()
    child.stdin.write(b"now\n")
    assert await child.wait() == -signal.SIGKILL

    await asyncio.to_thread(cluster.start)

    assert cluster.pid() != leftover
    assert cluster.bootstrap_servers == servers
    assert await read_one(servers) == b"before the kill"
    cluster.stop()
    assert not cluster.running()


@pytest.mark.usefixtures("real_kafka")
def test_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} is in use"):
            KafkaCluster(tmp_path, ports=[port]).start()


async def test_mock_broker_takes_messages_and_gives_them_back() -> None:
    with MockBroker() as mock:
        await send(mock.bootstrap_servers, b"through the mock")

        assert await read_one(mock.bootstrap_servers) == b"through the mock"
