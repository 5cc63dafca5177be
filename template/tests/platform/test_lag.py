"""The lag of consumer groups is there without a worker, and only while it is measured."""

import asyncio

from prometheus_client import REGISTRY

from app.platform.kafka.lag import GroupLagMeter
from app.platform.kafka.subscription import Subscription
from tests.fixtures import eventually, settings_for
from tests.world import Counted, World, counted, record_effect

COUNTER = Subscription("lag-counter", {Counted: record_effect})


def series(world: World) -> list[float]:
    return [
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "kafka_consumer_lag" and sample.labels["topic"] == world.topic
    ]


async def test_lag_is_measured_without_a_worker_and_comes_down(world: World) -> None:
    await world.create_topics(COUNTER)
    await world.send(*counted(20))
    meter = GroupLagMeter(world.settings, world.registry, [COUNTER])
    async with meter.measuring():
        found = await eventually(lambda: asyncio.sleep(0, series(world)), bool, 30)
        assert sum(found) == 20
    assert series(world) == []
    async with world.running(COUNTER):
        await world.has_effects(20)
    await meter.measure_once()
    assert sum(series(world)) == 0
    assert series(world)


async def test_lag_that_cannot_be_measured_has_no_series(world: World) -> None:
    await world.create_topics(COUNTER)
    meter = GroupLagMeter(world.settings, world.registry, [COUNTER])

    async def measured() -> list[float]:
        await meter.measure_once()
        return series(world)

    await eventually(measured)  # a topic may be seen a moment after it was created
    meter._settings = settings_for("127.0.0.1:9", "nobody")
    await meter.measure_once()
    assert series(world) == []
