"""Drill 1: the worker is killed."""

import asyncio
import random
from functools import partial
from operator import le

import pytest

from drills.bench import Bench, eventually
from drills.conftest import MakeBench

KILLS = 10


async def test_worker_killed_ten_times_applies_each_event_once(bench_of: MakeBench) -> None:
    """SIGKILL at random moments under load, each time with another worker after it.

    Work in flight is rolled back and done again; committed work is not. Two kills in three
    come while messages are handled, the third may hit the start or the join.
    """
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.001")
    await _kill(bench, KILLS)


@pytest.mark.parametrize("topic", ["shared", "cloud-events"])
async def test_killed_worker_on_another_topic(bench_of: MakeBench, topic: str) -> None:
    """The same with several types on one topic, and with CloudEvents in binary mode.

    Every second message is of a type that nobody handles, and some are sent twice.
    """
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.001", DRILL_TOPIC=topic)
    await _kill(bench, 3)
    assert await bench.count_dead_letters() == 0


async def _kill(bench: Bench, times: int) -> None:
    async with bench.feeding(rate=100):
        for number in range(times):
            more = await bench.applied() + 1
            worker = bench.worker(f"worker-{number}")
            if number % 3 < 2:
                await eventually(bench.applied, partial(le, more), seconds=40)
                await asyncio.sleep(random.uniform(0.0, 1.0))
            else:
                await asyncio.sleep(random.uniform(0.5, 4.0))
            worker.kill()
            await bench.check_commits()
    bench.worker("worker-last")
    await bench.settled()
    await bench.check()
