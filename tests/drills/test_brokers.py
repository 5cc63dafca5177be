"""Drill 4: brokers go away and come back."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.platform.dev.kafka import KafkaCluster
from drills.bench import Bench, eventually
from drills.conftest import MakeBench


@pytest.fixture
def three_brokers(drills_folder: Path) -> Iterator[KafkaCluster]:
    """Replication factor 3, min.insync.replicas=2."""
    cluster = KafkaCluster(drills_folder / "three", brokers=3, fresh=True)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.kill()


async def test_loss_of_any_broker_of_three_is_survived(
    bench_of: MakeBench, three_brokers: KafkaCluster
) -> None:
    """Two of three brokers are killed, one after the other, each a leader of some partitions.

    The others carry on: what can be handled is, what cannot reaches the dead letter topic.
    """
    bench = await bench_of(
        "every-way",
        three_brokers.bootstrap_servers,
        DRILL_PACE_SECONDS="0.001",
        KAFKA_TOPIC_REPLICATION_FACTOR="3",
    )
    worker = bench.worker()
    await worker.is_ready()
    poison = []
    async with bench.feeding(rate=100):
        await progress(bench)
        for number in three_brokers.numbers[:2]:
            three_brokers.kill(number)
            poison += await bench.send([bench.event("permanent") for _ in range(5)])
            await progress(bench)
            await asyncio.to_thread(three_brokers.start, number)
    await bench.settled(but=poison)
    await bench.check(but=poison)
    await worker.is_ready()


async def test_restart_of_the_only_broker_is_survived(
    bench_of: MakeBench, kafka: KafkaCluster
) -> None:
    """The only broker is stopped and started, then killed and started, under load.

    Meanwhile the worker says that it is not ready; it goes on by itself. So does another one that
    was started while there was no broker.
    """
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.001")
    worker = bench.worker()
    await worker.is_ready()
    async with bench.feeding(rate=100):
        await progress(bench)
        await asyncio.to_thread(kafka.stop, 1)
        await eventually(worker.readiness, no_consumer_is_ready, seconds=45)
        late = bench.worker("late")
        await eventually(late.liveness, lambda answer: answer[0] == 200)
        assert (await late.readiness())[0] == 503
        assert (await worker.liveness())[0] == 200
        await asyncio.to_thread(kafka.start, 1)
        await late.is_ready()
        await progress(bench)
        kafka.kill(1)
        await asyncio.sleep(1)
        await asyncio.to_thread(kafka.start, 1)
        await progress(bench)
        await bench.check_commits()
    await bench.settled()
    await bench.check()
    await worker.is_ready()


async def test_dead_letters_wait_for_their_topic(bench_of: MakeBench) -> None:
    """The dead letter topic is not there: the worker says so and moves no offset of what it should
    put in there, until somebody has made the topic."""
    bench = await bench_of("single", topics=False)
    await bench.create_topics(but=".dlq")
    worker = bench.worker()
    await worker.is_ready()
    good = await bench.feed(50)
    poison = await bench.send([bench.event("permanent") for _ in range(5)])
    await eventually(bench.applied, lambda now: now == len(good))
    _, said = await eventually(worker.readiness, lambda answer: answer[0] == 503)
    await bench.check_commits()
    assert "app topics create" in said["checks"]["consumer single"], said
    bench.app("topics", "create")
    await bench.settled(but=poison)
    await bench.check(but=poison)


async def progress(bench: Bench) -> None:
    enough = await bench.applied() + 300
    await eventually(bench.applied, lambda now: now >= enough, seconds=45)


def no_consumer_is_ready(answer: tuple[int, dict[str, Any]]) -> bool:
    checks = answer[1]["checks"].items()
    return "ok" not in [said for what, said in checks if what.startswith("consumer ")]
