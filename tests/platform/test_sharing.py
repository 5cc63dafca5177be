"""A Kafka that several services use: who may, and who does. tests/generated runs two services."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import KafkaError, KafkaException

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.dev import clearing, command
from app.platform.dev.clearing import delete_topics_and_groups
from app.platform.dev.command import ServerOptions
from app.platform.dev.errors import FolderInUse, KafkaNotShared, ServerFailed
from app.platform.dev.process import free_port, start_time
from app.platform.dev.servers import ADDRESSES, running_servers
from app.platform.dev.sharing import SharedKafka, Sharer, Sharers, find_kafka
from app.platform.events.event import BaseEvent, EventType
from app.platform.kafka.admin import TopicAdmin, provision
from app.platform.kafka.settings import KafkaSettings, consumer_options
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import group_of
from app.platform.runtime import Context
from app.platform.service import Component, Service
from tests.fixtures import settings_for, unique_service_name


class Placed(BaseEvent):
    key_field: ClassVar[str] = "event_id"
    event_type: Literal["order.placed"] = "order.placed"


class Metered(BaseEvent):
    key_field: ClassVar[str] = "event_id"
    event_type: Literal["meter.read"] = "meter.read"


class Lost(BaseEvent):
    key_field: ClassVar[str] = "event_id"
    event_type: Literal["meter.lost"] = "meter.lost"


def sharer(folder: Path, name: str) -> Sharer:
    project = folder / name
    project.mkdir(exist_ok=True)
    return Sharer(name, project, name)


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
    renamed = Sharers(tmp_path / "sharers", Sharer("store", tmp_path / "shop", "store"))
    renamed.enter()
    assert renamed.others() == []
    renamed.leave()


def test_a_copied_project_has_its_own_kafka(tmp_path: Path) -> None:
    original, copy = sharer(tmp_path, "shop"), sharer(tmp_path, "copy").project
    first, mine = (
        Sharers(copy / "sharers", original),
        Sharers(copy / "sharers", Sharer("shop", copy, "shop")),
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
    other = Sharers(tmp_path / "sharers", Sharer("shop", tmp_path / "elsewhere", "other"))
    for runs in (True, False):
        if not runs:
            sharers.leave()
        with pytest.raises(KafkaNotShared, match=rf"shop \({tmp_path}/shop\); .* SERVICE_NAME"):
            other.enter()
    assert sharers.running() == []
    (tmp_path / "shop").rmdir()
    other.enter()
    other.leave()


def test_another_service_with_the_same_groups_is_refused(tmp_path: Path, sharers: Sharers) -> None:
    """Also when the first does not run: each of the two would read only a part of the events."""
    project = sharer(tmp_path, "mail").project
    same = Sharers(tmp_path / "sharers", Sharer("mail", project, "shop"))
    for runs in (True, False):
        if not runs:
            sharers.leave()
        with pytest.raises(
            KafkaNotShared, match=r"groups of shop .* of KAFKA_GROUP_ID$"
        ) as refused:
            same.enter()
        assert "\n" not in str(refused.value)
    assert sharers.others() == []
    other = Sharers(tmp_path / "sharers", Sharer("mail", project, "shop.eu"))
    other.enter()
    other.leave()


@pytest.mark.parametrize("content", ["", "{", '"/a/folder"', "[]", "{}", "\udcff"])
def test_a_file_that_cannot_be_read_is_no_sharer(
    tmp_path: Path, sharers: Sharers, content: str
) -> None:
    sharers.leave()
    for name in ("shop", "mail"):
        file = tmp_path / "sharers" / f"{name}.json"
        file.write_bytes(content.encode(errors="surrogateescape"))
    assert sharers.others() == []
    sharers.enter()
    mail = Sharers(tmp_path / "sharers", sharer(tmp_path, "mail"))
    assert mail.others() == [sharer(tmp_path, "shop")]


def service_in(folder: Path, **addresses: object) -> Path:
    (folder / "app" / "platform" / "dev").mkdir(parents=True)
    (folder / "app" / "platform" / "dev" / "sharing.py").touch()
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


def test_a_service_of_an_older_template_shares_no_kafka(tmp_path: Path) -> None:
    running = service_in(tmp_path / "running", kafka=None)
    addresses = json.loads((running / ADDRESSES).read_text())
    del addresses["kafka"]
    (running / ADDRESSES).write_text(json.dumps(addresses))
    resting = service_in(tmp_path / "resting")
    (resting / "app" / "platform" / "dev" / "sharing.py").unlink()
    for older in (running, resting):
        with pytest.raises(KafkaNotShared, match="update it first"):
            find_kafka(older)


def test_an_empty_file_of_addresses_is_of_no_running_service(tmp_path: Path) -> None:
    (tmp_path / "servers.json").touch()
    assert running_servers(tmp_path / "servers.json") is None


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


def context_of(settings: KafkaSettings, name: str, *events: EventType) -> Context:
    """A service whose consumer `read` takes all of `events`."""

    async def handle(event: BaseEvent, uow: UnitOfWork) -> None: ...

    reads = Subscription("read", {event.model: handle for event in events})
    return Context.of(
        Service([Component("test", events=events, subscriptions=[reads])]), name, settings
    )


async def test_only_what_the_service_owns_is_cleared(real_kafka: str) -> None:
    mine, theirs = (settings_for(real_kafka, unique_service_name()) for _ in range(2))
    # A group whose id begins with that of another service.
    theirs = theirs.model_copy(update={"kafka_group_id": f"{mine.kafka_group_id}.eu"})
    owner = unique_service_name()
    foreign = [EventType(Metered, service=owner), EventType(Lost, service=owner)]
    me = context_of(mine, mine.kafka_group_id, EventType(Placed), *foreign)
    other = context_of(theirs, unique_service_name(), EventType(Metered, service=owner))
    for context in (other, me):
        await provision(mine, context.topics() + context.foreign_topics())
    metered, lost = f"{owner}.meter.read", f"{owner}.meter.lost"
    for settings, topic in ((mine, lost), (mine, metered), (theirs, metered)):
        await commit_offset(settings, topic)

    await asyncio.to_thread(delete_topics_and_groups, me)

    async with TopicAdmin.connected(mine) as admin:
        topics, groups = {*await admin.names()}, {*await admin.groups()}
    own = {topic.name for topic in me.topics()}
    shared = {topic.name for topic in other.topics()}
    assert shared < own
    assert own & topics == shared
    assert {metered, lost} <= topics
    assert {group_of("read", settings) for settings in (mine, theirs)} & groups == {
        group_of("read", theirs)
    }
    assert {*await provision(mine, me.topics())} == own - shared


class GroupAdmin:
    """An admin client of a broker that reports each of `errors` once, group by group."""

    def __init__(self, *errors: int) -> None:
        self.errors = [KafkaException(KafkaError(error)) for error in errors]

    def list_consumer_groups(self, **_options: object) -> Future[object]:
        errors, self.errors = self.errors, []
        valid = [] if errors else [SimpleNamespace(group_id="shop.read")]
        return done(SimpleNamespace(valid=valid, errors=errors))

    def delete_consumer_groups(
        self, groups: list[str], **_options: object
    ) -> dict[str, Future[object]]:
        return {group: done(None, self.errors.pop(0) if self.errors else None) for group in groups}


def done(result: object, error: Exception | None = None) -> Future[object]:
    future: Future[object] = Future()
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
    return future


def test_groups_are_listed_once_the_broker_has_loaded_them() -> None:
    admin = GroupAdmin(KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
    assert clearing._list_groups(admin) == {"shop.read"}
    with pytest.raises(KafkaException):
        clearing._list_groups(GroupAdmin(KafkaError.GROUP_AUTHORIZATION_FAILED))


def test_groups_are_deleted_once_the_broker_allows_it() -> None:
    admin = GroupAdmin(
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NON_EMPTY_GROUP,
        KafkaError.GROUP_ID_NOT_FOUND,
    )
    clearing._delete_groups(admin, {"shop.read"}, 60)
    assert admin.errors == []
    with pytest.raises(KafkaException):
        clearing._delete_groups(GroupAdmin(KafkaError.NON_EMPTY_GROUP), {"shop.read"}, -1)


def test_a_broker_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_admin: object) -> None:
        raise KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED))

    monkeypatch.setattr(clearing, "_list_groups", refuse)
    settings = settings_for("127.0.0.1:1", "shop")
    with pytest.raises(ServerFailed, match=r"^--fresh cannot delete") as failed:
        delete_topics_and_groups(context_of(settings, "shop", EventType(Placed)))
    assert "\n" not in str(failed.value)
