"""Names of topics, and what the broker has of them."""

from datetime import timedelta
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource
from aiokafka.protocol.metadata import MetadataRequest, MetadataRequest_v5
from hypothesis import given
from hypothesis import strategies as st
from samples import REGISTRY, TOPIC, MeterNamed, MeterRead, named_2, named_3

from app.platform.events.event import TOPIC_MAX_LENGTH, EventRegistry, EventType
from app.platform.kafka.admin import State, TopicAdmin, TopicCreationFailed, TopicsUnreadable
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import RetryPolicy, Subscription
from app.platform.kafka.topics import (
    Topic,
    dead_letter_topic,
    failure_topic,
    foreign_topics,
    format_delay,
    forwarded_limit,
    is_delay_topic,
    is_replay_topic,
    replay_topic,
    required_topics,
    retry_topic,
    source_topics,
)

SETTINGS = KafkaSettings(
    kafka_topic_partitions=6,
    kafka_topic_replication_factor=2,
    kafka_topic_retention_hours=48,
    kafka_dlq_retention_hours=100,
    _env_file=None,
)
DELAYS = [timedelta(seconds=5), timedelta(minutes=10)]

seconds = st.integers(1, 10**7).map(lambda n: timedelta(seconds=n))


async def handle(event: object, uow: object) -> None: ...


BILLING = Subscription("billing", {MeterRead: handle}, retry=RetryPolicy(retry_after=DELAYS))


@pytest.mark.parametrize(
    ("delay", "text"),
    [
        (timedelta(seconds=5), "5s"),
        (timedelta(seconds=90), "90s"),
        (timedelta(minutes=10), "10m"),
        (timedelta(minutes=60), "1h"),
        (timedelta(days=1), "24h"),
    ],
)
def test_a_delay_is_written_in_its_largest_whole_unit(delay: timedelta, text: str) -> None:
    assert format_delay(delay) == text


@given(seconds, seconds)
def test_different_delays_have_different_topics(one: timedelta, other: timedelta) -> None:
    same_topic = retry_topic(TOPIC, "billing", one) == retry_topic(TOPIC, "billing", other)

    assert same_topic == (one == other)


ORIGINS = [
    TOPIC,
    "shop.retry.read",
    "shop.order",
    "Billing",
    "Billing_Invoices.v1.replay",
    "a.b.dlq",
]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("consumer", ["billing", "retry", "replay", "dlq"])
def test_topics_for_failures_are_known_by_their_origin(origin: str, consumer: str) -> None:
    delay = retry_topic(origin, consumer, DELAYS[0])
    replay = replay_topic(origin, consumer)
    dead = dead_letter_topic(origin, consumer)

    assert [is_delay_topic(t, origin) for t in (origin, delay, replay, dead)] == [0, 1, 0, 0]
    assert [is_replay_topic(t, origin) for t in (origin, delay, replay, dead)] == [0, 0, 1, 0]
    for name, kind in ((delay, "retry"), (replay, "replay"), (dead, "dlq")):
        assert failure_topic(name) == (name, origin, consumer, kind)


@pytest.mark.parametrize(
    "topic", [TOPIC, "Billing", "shop.order", "shop.a_b.dlq", "a.b.retry.soon"]
)
def test_topics_of_events_are_not_those_of_failures(topic: str) -> None:
    assert failure_topic(topic) is None


def test_an_event_cannot_have_a_topic_for_failures() -> None:
    own = EventType(MeterNamed, {1: named_2, 2: named_3}, "shop", f"{TOPIC}.billing.dlq")
    registry = EventRegistry("accounts", [EventType(MeterRead, service="shop"), own])

    with pytest.raises(ValueError, match=r"both an event's and one for a consumer's failures"):
        required_topics(SETTINGS, registry, [BILLING])


def test_a_name_that_kafka_would_refuse_is_refused_here() -> None:
    with pytest.raises(ValueError, match="longer than 249"):
        dead_letter_topic("a.b." + "c" * (TOPIC_MAX_LENGTH - 4), "billing")


def test_a_subscription_reads_topics_replays_and_delays() -> None:
    assert source_topics(BILLING, REGISTRY) == {
        TOPIC: TOPIC,
        f"{TOPIC}.billing.replay": TOPIC,
        f"{TOPIC}.billing.retry.5s": TOPIC,
        f"{TOPIC}.billing.retry.10m": TOPIC,
    }


def test_the_service_requires_topics_of_events_and_failures() -> None:
    names = [topic.name for topic in required_topics(SETTINGS, REGISTRY, [BILLING])]

    assert names == [
        TOPIC,
        "shop.meter.named",
        f"{TOPIC}.billing.dlq",
        f"{TOPIC}.billing.replay",
        f"{TOPIC}.billing.retry.5s",
        f"{TOPIC}.billing.retry.10m",
    ]


def test_everything_that_a_consumer_reads_or_writes_is_wanted() -> None:
    names = {topic.name for topic in required_topics(SETTINGS, REGISTRY, [BILLING])}

    assert set(source_topics(BILLING, REGISTRY)) <= names
    assert len(names) == len(required_topics(SETTINGS, REGISTRY, [BILLING]))


def test_failure_topics_of_foreign_topics_are_required() -> None:
    registry = EventRegistry("accounts", [EventType(MeterRead, service="shop")])
    names = [topic.name for topic in required_topics(SETTINGS, registry, [BILLING])]

    assert TOPIC not in names
    assert f"{TOPIC}.billing.dlq" in names


def test_topics_of_other_services_have_their_owner() -> None:
    registry = EventRegistry("accounts", [EventType(MeterRead, service="shop")])

    assert foreign_topics(SETTINGS, registry) == [Topic(TOPIC, 6, 2, owner="shop")]


def test_topics_have_the_settings_of_the_service() -> None:
    by_name = {topic.name: topic for topic in required_topics(SETTINGS, REGISTRY, [BILLING])}

    assert {(t.partitions, t.replication_factor) for t in by_name.values()} == {(6, 2)}
    assert by_name[TOPIC].config == {"retention.ms": str(48 * 3_600_000)}
    dead_letters = by_name[f"{TOPIC}.billing.dlq"].config
    assert dead_letters["retention.ms"] == str(100 * 3_600_000)
    assert dead_letters["segment.ms"] == str(24 * 3_600_000)


def test_the_largest_message_can_be_forwarded() -> None:
    limit = forwarded_limit(SETTINGS)
    assert limit > SETTINGS.kafka_max_message_bytes

    for topic in required_topics(SETTINGS, REGISTRY, [BILLING]):
        if topic.name not in REGISTRY.owned_topics():
            assert topic.config["max.message.bytes"] == str(limit)


def test_an_unregistered_event_is_found_when_topics_are_listed() -> None:
    other = EventRegistry("shop", [EventType(MeterRead)])

    with pytest.raises(LookupError, match="MeterNamed"):
        required_topics(SETTINGS, other, [Subscription("names", {MeterNamed: handle})])


WANTED = [Topic("a", 3, 1), Topic("b", 3, 1, {"retention.ms": "5"}), Topic("c", 3, 1)]


class FakeAdminClient:
    """Topics in memory; `refused` maps a topic to the broker's error code."""

    controller = 1

    def __init__(self, partitions: dict[str, int], refused: dict[str, int] | None = None) -> None:
        self.partitions = partitions
        self.refused = refused or {}
        self.created: list[NewTopic] = []
        self.described: list[str] = []
        self.replication = 1
        self.configs: dict[str, dict[str, str]] = {}
        self.hidden: set[str] = set()
        self._client = self  # the client below the one for administration

    def get_random_node(self) -> int:
        return 1

    async def send(self, _node: int, request: MetadataRequest) -> Any:
        """Answer as the broker does about topics that it is asked for by name."""
        asked = request.build(MetadataRequest_v5)
        assert asked.allow_auto_topic_creation is False
        topics: list[tuple[int, str, bool, list[Any]]] = [
            (29 if name in self.hidden else 3, name, False, []) for name in asked.topics
        ]
        return type("Answer", (), {"topics": topics})()

    async def list_topics(self) -> list[str]:
        return list(self.partitions)

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        self.described += names
        return [
            {
                "topic": name,
                "partitions": [
                    {"partition": n, "replicas": [*range(self.replication)]} for n in range(count)
                ],
            }
            for name in names
            if (count := self.partitions.get(name)) is not None
        ]

    async def describe_configs(self, asked: list[ConfigResource]) -> list[Any]:
        assert self.controller == 1, "a mock broker has no DescribeConfigs"
        resources: list[tuple[object, ...]] = [
            (
                self.refused.get(resource.name, 0),
                "",
                resource.resource_type,
                resource.name,
                [
                    (key, value, False, 5, False, [])
                    for key, value in self.configs.get(resource.name, {}).items()
                    if key in resource.configs
                ],
            )
            for resource in asked
        ]
        return [type("Answer", (), {"resources": resources})()]

    async def describe_cluster(self) -> dict[str, Any]:
        return {"controller_id": self.controller, "brokers": [{"node_id": 1}]}

    async def create_topics(self, topics: list[NewTopic]) -> Any:
        self.created += topics
        errors = [(topic.name, self.refused.get(topic.name, 0), "") for topic in topics]
        return type("Answer", (), {"topic_errors": errors})()


async def test_wanted_topics_are_compared_with_what_is_there() -> None:
    states = await TopicAdmin(FakeAdminClient({"a": 3, "b": 1, "other": 9})).compare(WANTED)

    assert [state.state for state in states] == [State.PRESENT, State.DIFFERENT, State.MISSING]
    assert states[1].detail == "1 partitions, expected 3"


async def test_a_topic_with_fewer_replicas_differs() -> None:
    client = FakeAdminClient({"a": 3, "b": 2})
    client.replication = 1
    wanted_topics = [Topic("a", 3, 3), Topic("b", 3, 3)]
    states = await TopicAdmin(client).compare(wanted_topics)

    assert {state.state for state in states} == {State.DIFFERENT}
    assert [state.detail for state in states] == [
        "replication 1, expected 3",
        "2 partitions, expected 3; replication 1, expected 3",
    ]


async def test_only_required_settings_of_a_topic_are_compared() -> None:
    client = FakeAdminClient({"a": 3, "b": 3})
    client.configs = {"b": {"retention.ms": "60000", "cleanup.policy": "compact"}}
    states = await TopicAdmin(client).compare(WANTED[:2])

    assert [state.state for state in states] == [State.PRESENT, State.DIFFERENT]
    assert states[1].detail == "retention.ms 60000, expected 5"
    client.configs["b"]["retention.ms"] = "5"
    assert (await TopicAdmin(client).compare(WANTED[:2]))[1].state is State.PRESENT


async def test_a_mock_broker_is_not_asked_for_settings() -> None:
    client = FakeAdminClient({"b": 3})
    client.controller = -1

    assert [state.state for state in await TopicAdmin(client).compare(WANTED[1:2])] == [
        State.PRESENT
    ]


async def test_unreadable_topic_settings_do_not_prevent_creation() -> None:
    admin = TopicAdmin(FakeAdminClient({"a": 3, "b": 3}, refused={"b": 29}))

    with pytest.raises(TopicsUnreadable, match="b: TopicAuthorizationFailedError"):
        await admin.compare(WANTED)
    assert await admin.create(WANTED) == ["c"]


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


async def test_refused_topics_are_named_with_the_reason() -> None:
    client = FakeAdminClient({}, refused={"b": 38})

    with pytest.raises(TopicCreationFailed, match="b: InvalidReplicationFactorError"):
        await TopicAdmin(client).create(WANTED)


async def test_a_topic_created_meanwhile_is_no_error_and_not_counted() -> None:
    client = FakeAdminClient({}, refused={"b": 36})

    assert await TopicAdmin(client).create(WANTED) == ["a", "c"]


async def test_a_topic_that_is_hidden_from_the_user_is_not_missing() -> None:
    client = FakeAdminClient({"a": 3})
    client.hidden = {"b"}
    admin = TopicAdmin(client)

    states = {state.topic.name: state.state for state in await admin.compare(WANTED)}
    assert states == {"a": State.PRESENT, "b": State.HIDDEN, "c": State.MISSING}
    with pytest.raises(TopicsUnreadable, match="not authorized to describe b: grant"):
        await admin.partitions(["a", "b", "c"])
