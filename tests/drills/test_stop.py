"""Drill 7: SIGTERM under load."""

import asyncio

import pytest

from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.postgres import PostgresServer
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process

DRAIN_SECONDS = 5
# Interpreter, server and connections have to end as well; consumers and producer of a broker that
# does not answer are given up after five seconds each.
MARGIN_SECONDS = 5
HANGING_SECONDS = 10


async def test_stopped_worker_leaves_nothing_half_done(bench_of: MakeBench) -> None:
    """SIGTERM in the middle of batches, several times: exit code 0 within the deadline.

    Work in flight is finished and committed, so nothing is rolled back and nothing handled
    again: the ids of the effects have no gap.
    """
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.0005")
    await bench.feed(1500)
    async with bench.feeding(rate=200):
        for number in range(3):
            worker = bench.worker(f"worker-{number}")
            await progress(bench)
            assert await stopped(worker) == 0
            await bench.check_commits()
        last = bench.worker("last")
        await last.is_ready()
    await bench.settled()
    await bench.check()
    assert await rolled_back(bench) == 0, "work in flight was thrown away"
    for consumer in bench.consumers:
        assert await last.metric("kafka_inbox_duplicates_total", consumer=consumer) == 0


async def test_handlers_slower_than_the_deadline_are_rolled_back(bench_of: MakeBench) -> None:
    """A batch takes much longer than the deadline: it is given up, and the next worker does it."""
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.05")
    await bench.feed(600)
    worker = bench.worker()
    await worker.is_ready()
    await asyncio.sleep(1)
    assert await stopped(worker) == 0
    await bench.check_commits()
    bench.worker("quick", DRILL_PACE_SECONDS="0")
    await bench.settled()
    await bench.check()


@pytest.mark.parametrize("server", ["database", "broker"])
async def test_worker_stops_in_time_while_a_server_hangs(
    bench_of: MakeBench, postgres: PostgresServer, kafka: KafkaCluster, server: str
) -> None:
    """The database or the broker takes connections and answers nothing: the worker still ends."""
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.001")
    worker = bench.worker()
    await worker.is_ready()
    frozen: PostgresServer | KafkaCluster = postgres if server == "database" else kafka
    async with bench.feeding(rate=150):
        await progress(bench)
        frozen.suspend()
        try:
            await asyncio.sleep(1)
            assert await stopped(worker, HANGING_SECONDS) == 0
        finally:
            frozen.resume()
    bench.worker("next")
    await bench.settled()
    await bench.check()


async def stopped(worker: Process, hanging: float = 0) -> int:
    """SIGTERM; the exit code, if it comes in time."""
    worker.terminate()
    return await worker.exit_code(DRAIN_SECONDS + MARGIN_SECONDS + hanging)


async def rolled_back(bench: Bench) -> int:
    """Effects that came about and were undone: their ids are missing."""
    rows = await bench.query("SELECT max(id) - count(*) FROM effects")
    return int(rows[0][0])


async def progress(bench: Bench) -> None:
    enough = await bench.applied() + 300
    await eventually(bench.applied, lambda now: now >= enough)
