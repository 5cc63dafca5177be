"""A Kafka that several services use: who may, and who does. tests/generated runs two services."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.platform.dev import command
from app.platform.dev.clearing import delete_topics_and_groups
from app.platform.dev.command import ServerOptions
from app.platform.dev.errors import FolderInUse, KafkaNotShared
from app.platform.dev.process import free_port, start_time
from app.platform.dev.servers import ADDRESSES
from app.platform.dev.sharing import SharedKafka, Sharer, Sharers, find_kafka
from app.platform.kafka.admin import TopicAdmin, provision
from app.platform.kafka.settings import KafkaSettings, consumer_options
from app.platform.kafka.topics import Topic, group_of
from tests.fixtures import settings_for, unique_service_name


def sharer(folder: Path, name: str) -> Sharer:
    project = folder / name
    project.mkdir(exist_ok=True)
    return Sharer(name, project)


@pytest.fixture
def sharers(tmp_path: Path) -> Iterator[Sharers]:
    """The sharers of a Kafka, as the service `shop` sees them. It runs."""
    sharers = Sharers(tmp_path / "sharers", sharer(tmp_path, "shop"))
    sharers.enter()
    yield sharers
    sharers.leave()


def test_a_sharer_sees_the_others_and_which_of_them_run(tmp_path: Path, sharers: Sharers) -> None:
    mail = Sharers(tmp_path / "sharers", sharer(tmp_path, "mail"))
    mail.enter()
    assert sharers.others() == sharers.running() == [sharer(tmp_path, "mail")]
    mail.leave()
    assert sharers.others() == [sharer(tmp_path, "mail")]
    assert sharers.running() == []
    (tmp_path / "mail").rmdir()
    assert sharers.others() == []


def test_a_service_with_a_new_name_is_no_other_one(tmp_path: Path, sharers: Sharers) -> None:
    sharers.leave()
    renamed = Sharers(tmp_path / "sharers", Sharer("store", tmp_path / "shop"))
    renamed.enter()
    assert renamed.others() == []
    renamed.leave()


def test_a_copied_project_has_its_own_kafka(tmp_path: Path) -> None:
    original, copy = sharer(tmp_path, "shop"), sharer(tmp_path, "copy").project
    first, mine = (
        Sharers(copy / "sharers", original),
        Sharers(copy / "sharers", Sharer("shop", copy)),
    )
    first.enter()
    with pytest.raises(KafkaNotShared, match="belong to"):
        mine.enter()  # the other one uses this very Kafka
    first.leave()
    mine.enter()
    mine.leave()


def test_a_second_run_of_a_service_is_refused(tmp_path: Path, sharers: Sharers) -> None:
    again = Sharers(tmp_path / "sharers", sharer(tmp_path, "shop"))
    with pytest.raises(FolderInUse, match=f"runs already, as process {os.getpid()}"):
        again.enter()
    sharers.leave()
    again.enter()
    again.leave()


def test_another_service_of_one_name_is_refused(tmp_path: Path, sharers: Sharers) -> None:
    """Also when the first does not run: its topics would be those of the second."""
    other = Sharers(tmp_path / "sharers", Sharer("shop", tmp_path / "elsewhere"))
    for runs in (True, False):
        if not runs:
            sharers.leave()
        with pytest.raises(KafkaNotShared, match=f"belong to {tmp_path}/shop; .* SERVICE_NAME"):
            other.enter()
    assert sharers.running() == []
    (tmp_path / "shop").rmdir()
    other.enter()
    other.leave()


def service_in(folder: Path, **addresses: object) -> Path:
    (folder / "app" / "platform").mkdir(parents=True)
    if addresses:
        file = folder / ADDRESSES
        file.parent.mkdir()
        written = {"process": os.getpid(), "started": start_time(os.getpid()), **addresses}
        file.write_text(json.dumps(written))
    return folder


def test_the_kafka_of_a_service_is_the_one_that_it_uses(tmp_path: Path) -> None:
    with pytest.raises(KafkaNotShared, match=f"no service in {tmp_path}"):
        find_kafka(tmp_path)
    resting = service_in(tmp_path / "resting")
    assert find_kafka(resting) == resting / ".dev" / "kafka"
    guest = service_in(tmp_path / "guest", kafka="/of/another")
    assert find_kafka(guest) == Path("/of/another")
    with pytest.raises(KafkaNotShared, match="without a Kafka of its own"):
        find_kafka(service_in(tmp_path / "mocking", kafka=None))
    older = service_in(tmp_path / "older", kafka=None)
    addresses = json.loads((older / ADDRESSES).read_text())
    del addresses["kafka"]
    (older / ADDRESSES).write_text(json.dumps(addresses))
    with pytest.raises(KafkaNotShared, match="update it first"):
        find_kafka(older)


def test_a_guest_never_asks_to_delete_the_data(tmp_path: Path) -> None:
    host, guest = sharer(tmp_path, "shop"), sharer(tmp_path, "mail")
    data = host.project / ".dev" / "kafka"
    assert not SharedKafka(data, host, fresh=True).is_guest
    assert SharedKafka(data, guest, fresh=True).is_guest


@pytest.mark.parametrize("excluding", ["mock", "KAFKA_BOOTSTRAP_SERVERS"])
def test_another_broker_excludes_sharing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, excluding: str
) -> None:
    monkeypatch.setenv("DEV_KAFKA_OF", str(service_in(tmp_path / "other")))
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    if excluding != "mock":
        monkeypatch.setenv(excluding, "kafka.example:9092")
    options = ServerOptions("mock" if excluding == "mock" else "kafka")
    with pytest.raises(KafkaNotShared, match="leave out --kafka-of and DEV_KAFKA_OF"):
        command._configure_servers(options)


def test_without_a_port_the_next_free_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_port(), free_port()
    monkeypatch.setattr(command, "PORTS", [taken, free])
    with socket.create_server(("127.0.0.1", taken)), command._listen(None) as listener:
        assert listener.getsockname()[1] == free


async def commit_offset(settings: KafkaSettings, topic: str) -> None:
    """Read the topic as a consumer of the service, up to its end."""
    consumer = AIOKafkaConsumer(**consumer_options(settings), group_id=group_of("read", settings))
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.commit({TopicPartition(topic, 0): 1})
    finally:
        await consumer.stop()


async def test_only_what_the_service_owns_is_cleared(real_kafka: str) -> None:
    mine, theirs = (settings_for(real_kafka, unique_service_name()) for _ in range(2))
    topics = [
        Topic(f"{settings.kafka_group_id}.meter.read", 1, 1, {"retention.ms": "-1"})
        for settings in (mine, theirs)
    ]
    await provision(mine, topics)
    for settings in (mine, theirs):
        await commit_offset(settings, topics[1].name)
    absent = replace(topics[0], name=f"{mine.kafka_group_id}.meter.lost")

    await asyncio.to_thread(delete_topics_and_groups, mine, [topics[0], absent])

    async with TopicAdmin.connected(mine) as admin:
        remaining = {*await admin.names(), *await admin.groups()}
    assert {topic.name for topic in topics} & remaining == {topics[1].name}
    groups = {group_of("read", settings) for settings in (mine, theirs)}
    assert groups & remaining == {group_of("read", theirs)}
    assert await provision(mine, topics) == [topics[0].name]
