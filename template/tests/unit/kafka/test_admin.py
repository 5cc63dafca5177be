from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic

from app.kafka.admin import State, TopicAdmin, TopicCreationFailed
from app.kafka.topics import Topic

WANTED = [Topic("a", 3, 1), Topic("b", 3, 1, {"retention.ms": "5"}), Topic("c", 3, 1)]


class FakeAdminClient:
    """Topics in memory; `refused` maps a topic to the broker's error code."""

    controller = 1

    def __init__(self, partitions: dict[str, int], refused: dict[str, int] | None = None) -> None:
        self.partitions = partitions
        self.refused = refused or {}
        self.created: list[NewTopic] = []
        self.described: list[str] = []

    async def list_topics(self) -> list[str]:
        return list(self.partitions)

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        self.described += names
        return [
            {"topic": name, "partitions": [{"partition": n} for n in range(count)]}
            for name in names
            if (count := self.partitions.get(name)) is not None
        ]

    async def describe_cluster(self) -> dict[str, Any]:
        return {"controller_id": self.controller, "brokers": [{"node_id": 1}]}

    async def create_topics(self, topics: list[NewTopic]) -> Any:
        self.created += topics
        errors = [(topic.name, self.refused.get(topic.name, 0), "") for topic in topics]
        return type("Answer", (), {"topic_errors": errors})()


async def test_wanted_topics_are_compared_with_what_is_there() -> None:
    states = await TopicAdmin(FakeAdminClient({"a": 3, "b": 1, "other": 9})).compare(WANTED)

    assert [state.state for state in states] == [State.PRESENT, State.DIFFERENT, State.MISSING]
    assert states[1].detail == "1 partitions, the settings say 3"


async def test_only_missing_topics_are_made_with_their_settings() -> None:
    client = FakeAdminClient({"a": 3})

    assert await TopicAdmin(client).create(WANTED) == ["b", "c"]
    (topic, _) = client.created
    assert (topic.name, topic.num_partitions, topic.replication_factor) == ("b", 3, 1)
    assert topic.topic_configs == {"retention.ms": "5"}


async def test_nothing_is_asked_for_when_all_topics_are_there() -> None:
    client = FakeAdminClient({"a": 3, "b": 3, "c": 3})

    assert await TopicAdmin(client).create(WANTED) == []
    assert client.created == []


async def test_a_mock_broker_makes_the_topics_that_it_is_asked_for() -> None:
    client = FakeAdminClient({"a": 3})
    client.controller = -1

    assert await TopicAdmin(client).create(WANTED) == ["b", "c"]
    assert client.created == []
    assert client.described[-2:] == ["b", "c"]


async def test_topics_that_do_not_exist_have_no_partitions() -> None:
    admin = TopicAdmin(FakeAdminClient({"a": 2}))

    assert await admin.partitions(["a", "b"]) == [TopicPartition("a", 0), TopicPartition("a", 1)]


async def test_topics_that_the_broker_refuses_are_named_with_its_reason() -> None:
    client = FakeAdminClient({}, refused={"b": 38})

    with pytest.raises(TopicCreationFailed, match="b: InvalidReplicationFactorError"):
        await TopicAdmin(client).create(WANTED)


async def test_a_topic_that_somebody_else_made_meanwhile_is_as_good_as_made() -> None:
    client = FakeAdminClient({}, refused={"b": 36})

    assert await TopicAdmin(client).create(WANTED) == ["a", "b", "c"]
