"""Drill 2: the group of workers changes."""

import asyncio

from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process


async def test_workers_that_join_and_leave_repeat_nothing(bench_of: MakeBench) -> None:
    """Under load a worker joins two others, and then one of the three is stopped.

    A worker that loses a partition finishes and commits first, so that not one message is handled twice.
    """
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.001")
    async with bench.feeding(rate=200):
        first, second = bench.worker("first"), bench.worker("second")
        await asyncio.gather(first.is_ready(), second.is_ready())
        await progress(bench)
        third = bench.worker("third")
        await third.is_ready()
        await progress(bench)
        second.terminate()
        assert await second.exit_code(seconds=15) == 0
        await bench.check_commits()
        await progress(bench)
    await bench.settled()
    await bench.check()
    assert await duplicates(bench, first, third) == 0


async def test_workers_killed_and_frozen_in_a_group_cost_nothing(bench_of: MakeBench) -> None:
    """Under load one of three workers is killed, another is frozen until the group has given its
    partitions away, and then goes on as if nothing had happened."""
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.001")
    async with bench.feeding(rate=150):
        workers = [bench.worker(f"worker-{number}") for number in range(3)]
        await asyncio.gather(*(worker.is_ready() for worker in workers))
        await progress(bench)
        killed, frozen, left = workers
        killed.kill()
        await progress(bench)
        await bench.check_commits()
        frozen.suspend()
        await asyncio.sleep(5)  # longer than the session: the other one has the partitions now
        await bench.check_commits()
        frozen.resume()
        await progress(bench)
        await asyncio.gather(frozen.is_ready(), left.is_ready())
    await bench.settled()
    await bench.check()


async def progress(bench: Bench) -> None:
    """Wait until a good deal more is applied."""
    enough = await bench.applied() + 300
    await eventually(bench.applied, lambda now: now >= enough)


async def duplicates(bench: Bench, *workers: Process) -> float:
    """Messages that the inbox had to recognise."""
    counts = [
        await worker.metric("kafka_inbox_duplicates_total", consumer=consumer)
        for worker in workers
        for consumer in bench.consumers
    ]
    return sum(counts)
