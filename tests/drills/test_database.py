"""Drill 3: the database goes away, and is slow."""

import asyncio

import asyncpg

from app.platform.dev.postgres import PostgresServer
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process


async def test_database_that_stops_costs_time_only(
    bench_of: MakeBench, postgres: PostgresServer
) -> None:
    """PostgreSQL is stopped for a while, and later killed, under load.

    The worker waits, says so, and stays in its group; no attempt is counted, nothing is
    dead-lettered.
    """
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.001")
    worker = bench.worker()
    await worker.is_ready()
    async with bench.feeding(rate=150):
        await progress(bench)
        postgres.stop()
        await not_ready(worker)
        await asyncio.sleep(3)
        assert (await worker.liveness())[0] == 200
        postgres.start()
        await progress(bench)
        postgres.kill()
        await asyncio.sleep(1)
        postgres.start()
        await progress(bench)
    await bench.settled()
    await bench.check()
    await worker.is_ready()
    await no_failure_counted(bench, worker)
    assert len(worker.logged("partitions assigned")) == len(bench.consumers), "it left its group"


async def test_database_that_drops_connections_costs_nothing(bench_of: MakeBench) -> None:
    """The server ends connections again and again, in the middle of transactions."""
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.005")
    worker = bench.worker()
    await worker.is_ready()
    async with bench.feeding(rate=150):
        for _ in range(20):  # the next one while a batch is taken one by one
            await asyncio.sleep(0.2)
            await bench.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    await bench.settled()
    await bench.check()
    await no_failure_counted(bench, worker)


async def test_slow_database_keeps_the_worker_in_its_group(
    bench_of: MakeBench, postgres: PostgresServer
) -> None:
    """A lock holds every transaction up, then the server freezes, each longer than a session and
    than the time in which a member of the group has to poll."""
    bench = await bench_of("every-way", DRILL_PACE_SECONDS="0.001")
    worker = bench.worker()
    await worker.is_ready()
    async with bench.feeding(rate=150):
        await progress(bench)
        await locked(bench, seconds=7)
        await progress(bench)
        postgres.suspend()
        await asyncio.sleep(6)
        postgres.resume()
        await progress(bench)
    await bench.settled()
    await bench.check()
    await no_failure_counted(bench, worker)
    assert len(worker.logged("partitions assigned")) == len(bench.consumers), "it left its group"


async def locked(bench: Bench, seconds: float) -> None:
    connection = await asyncpg.connect(bench.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(seconds)
    finally:
        await connection.close()


async def not_ready(worker: Process) -> None:
    status, said = await eventually(worker.readiness, lambda answer: answer[0] == 503)
    assert "database" in said["checks"], (status, said)


async def no_failure_counted(bench: Bench, worker: Process) -> None:
    for consumer in bench.consumers:
        failed = await worker.metric("kafka_messages_failed_total", consumer=consumer)
        assert failed == 0, f"{consumer}: an outage was counted as {failed:g} failures"


async def progress(bench: Bench) -> None:
    enough = await bench.applied() + 200
    await eventually(bench.applied, lambda now: now >= enough)
