"""Overload: most messages fail, so the fault is not in the messages."""

import asyncio

from app.drill import Ticked
from drills.bench import Bench, eventually
from drills.conftest import MakeBench


async def test_overloaded_subscription_pauses_says_so_and_recovers(bench_of: MakeBench) -> None:
    """Take away what the handler depends on, so that every message fails.

    The subscription stops taking, in the log, the metrics and the readiness; the topic is not
    emptied into the dead letter topic. When the dependency is back, it goes on by itself.
    """
    bench = await bench_of("overload")
    worker = bench.worker()
    await bench.feed(200)
    await bench.settled()
    await bench.query("INSERT INTO outage VALUES ('drill')")
    await bench.feed(300)
    _, said = await eventually(worker.readiness, lambda answer: answer[0] == 503)
    assert "HandlerFault" in said["checks"]["consumer single"], said
    assert (await worker.liveness())[0] == 200
    assert await worker.metric("kafka_consumer_paused", consumer="single", reason="overload") == 1
    await asyncio.sleep(4)
    given_up = len(await bench.dead_letters("single"))
    assert given_up <= 10, f"{given_up} messages dead-lettered"
    assert await bench.applied() == 200
    assert len(worker.logged("subscription paused")) == 1
    await bench.check_commits(but=await lost(bench))

    await bench.query("DELETE FROM outage")
    await worker.is_ready(seconds=10)
    await bench.settled(but=await lost(bench))
    assert len(worker.logged("subscription resumed")) == 1
    assert await worker.metric("kafka_consumer_paused", consumer="single", reason="overload") == 0
    bench.app("dlq", "replay")
    await bench.settled()
    times = [effect.event_id for effect in await bench.effects("single")]
    assert sorted(times) == sorted(bench.sent), "not each exactly once"


async def lost(bench: Bench) -> list[Ticked]:
    """Return the messages that were given up before the subscription paused."""
    ids = {dict(letter.headers)["ce_id"].decode() for letter in await bench.dead_letters("single")}
    return [sent.event for sent in bench.sent.values() if str(sent.event.event_id) in ids]
