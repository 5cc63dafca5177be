import asyncio
from collections.abc import Sequence

import pytest
from aiokafka import OffsetAndMetadata, TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    KafkaError,
    NodeNotReadyError,
)
from prometheus_client import REGISTRY

from app import wiring
from app.cqrs.lag import Lag, Monitor, committed_offsets, measure
from app.cqrs.projections import SUBSCRIPTIONS
from app.cqrs.settings import ProjectionSettings
from app.database import Database
from app.health import Health, Unhealthy
from app.kafka.admin import provision
from app.kafka.codec import encode
from app.kafka.consumer import consuming
from app.kafka.event import EventRegistry
from app.kafka.producer import KafkaProducer
from app.kafka.settings import KafkaSettings
from app.kafka.topics import wanted
from app.tracing import Trace
from tests.eventually import eventually
from tests.fixtures.service import settings_for
from tests.integration.cqrs.conftest import Shop

NAMES = {subscription.name for subscription in SUBSCRIPTIONS}


@pytest.fixture
async def registry(kafka_settings: KafkaSettings) -> EventRegistry:
    registry = EventRegistry(kafka_settings.kafka_client_id, wiring.EVENTS)
    await provision(kafka_settings, wanted(kafka_settings, registry, SUBSCRIPTIONS))
    return registry


def monitor(kafka: KafkaSettings, registry: EventRegistry, seconds: float | None) -> Monitor:
    settings = ProjectionSettings(projections_max_lag_seconds=seconds, _env_file=None)
    return Monitor(kafka, registry, settings)


async def test_lag_grows_until_the_projectors_run_and_is_gone_after_them(
    shop: Shop,
    database: Database,
    kafka_settings: KafkaSettings,
    registry: EventRegistry,
    producer: KafkaProducer,
) -> None:
    assert await measure(kafka_settings, registry) == dict.fromkeys(NAMES, Lag())

    order_id = await shop.place(await shop.sign_up("ada"))
    await shop.pay(order_id)
    messages = [encode(event, registry, Trace("story")) for event in shop.events]
    assert await producer.send_all(messages) == [None] * 3
    await asyncio.sleep(1)
    behind = await measure(kafka_settings, registry)
    assert {name: lag.events for name, lag in behind.items()} == {
        "order-views": 2,
        "daily-sales": 2,
        "customer-names": 1,
    }
    assert all(1 <= lag.seconds < 60 for lag in behind.values())

    await shop_projects(shop, kafka_settings, registry, producer)
    assert (await shop.content())["order_views"][0][0] == order_id


async def shop_projects(
    shop: Shop, settings: KafkaSettings, registry: EventRegistry, producer: KafkaProducer
) -> None:
    """The projectors run until they have caught up."""
    async with consuming(SUBSCRIPTIONS, registry, settings, shop.units, producer, Health()):
        await eventually(
            lambda: measure(settings, registry),
            lambda lags: lags == dict.fromkeys(NAMES, Lag()),
            seconds=30,
        )


async def test_readiness_depends_on_lag_only_where_it_is_asked_for(
    shop: Shop, kafka_settings: KafkaSettings, registry: EventRegistry, producer: KafkaProducer
) -> None:
    strict, patient, careless = (
        monitor(kafka_settings, registry, seconds) for seconds in (0.5, 600.0, None)
    )
    with pytest.raises(Unhealthy, match="not measured yet"):
        await strict.ready()
    await shop.sign_up("ada")
    await producer.send_all([encode(event, registry, Trace("story")) for event in shop.events])
    await asyncio.sleep(1)
    for each in (strict, patient, careless):
        await each.look()
    with pytest.raises(Unhealthy, match=r"customer-names is \d+ s behind, 1 events"):
        await strict.ready()
    await patient.ready()
    await careless.ready()
    assert REGISTRY.get_sample_value("projection_lag_events", {"projection": "customer-names"}) == 1


class Coordinator:
    """An admin client whose coordinator gives these answers, the last of them for ever."""

    def __init__(self, *answers: KafkaError | dict[TopicPartition, OffsetAndMetadata]) -> None:
        self._answers = [*answers]

    async def list_consumer_group_offsets(
        self, group: str, *, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, KafkaError):
            raise answer
        return answer


FIRST, SECOND = TopicPartition("shop.order.paid", 0), TopicPartition("shop.order.paid", 1)
KNOWN = {FIRST: OffsetAndMetadata(7, ""), SECOND: OffsetAndMetadata(-1, "")}


async def test_a_coordinator_that_is_found_and_loaded_only_now_is_waited_for() -> None:
    late = Coordinator(GroupCoordinatorNotAvailableError(), NodeNotReadyError(), {}, KNOWN)
    assert await committed_offsets(late, "views", [FIRST, SECOND]) == {FIRST: 7}


@pytest.mark.parametrize("answer", [GroupCoordinatorNotAvailableError(), {}])
async def test_a_coordinator_that_stays_away_is_an_error(
    answer: KafkaError | dict[TopicPartition, OffsetAndMetadata],
) -> None:
    with pytest.raises(KafkaError):
        await committed_offsets(Coordinator(answer), "views", [FIRST], patience=0.2)


async def test_who_may_not_see_the_offsets_is_told_at_once() -> None:
    refusing = Coordinator(GroupAuthorizationFailedError(), KNOWN)
    with pytest.raises(GroupAuthorizationFailedError):
        await committed_offsets(refusing, "views", [FIRST])


async def test_a_broker_that_is_away_makes_the_lag_unknown(registry: EventRegistry) -> None:
    away = settings_for("127.0.0.1:9", "nobody")
    strict, careless = monitor(away, registry, 600.0), monitor(away, registry, None)
    for each in (strict, careless):
        await each.look()
    with pytest.raises(Unhealthy, match="lag not measured"):
        await strict.ready()
    await careless.ready()
