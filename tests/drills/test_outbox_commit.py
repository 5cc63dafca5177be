"""The outbox, when the answer to COMMIT is lost."""

import asyncio

from drills.bench import eventually
from drills.commits import (
    FED,
    REQUESTS,
    at_random,
    echoes,
    effects,
    sign_up,
    users,
    users_published,
)
from drills.conftest import MakeBench
from tests.lossy import Cut, lossy_network


async def test_no_outbox_row_depends_on_the_answer(bench_of: MakeBench) -> None:
    """Connections of API, worker and relay are cut at COMMIT, before or after the server has got it.

    What is committed is published; nothing else is. A relay whose answer is lost may send twice.
    """
    bench = await bench_of("echo", topics=False)
    bench.app("topics", "create")
    async with lossy_network(bench.database_url) as network:
        api = bench.api(DATABASE_URL=network.url)
        worker = bench.worker(DATABASE_URL=network.url)
        relay = bench.relay(DATABASE_URL=network.url)
        await asyncio.gather(*(process.is_ready() for process in (api, worker, relay)))
        network.cuts = at_random(Cut.BEFORE_COMMIT)
        await sign_up(api)
        for _ in range(FED // 10):
            await bench.feed(10)
        await bench.settled()
        assert network.made.count(Cut.AFTER_COMMIT) > REQUESTS // 10, network.made
        network.cuts = lambda: None
        committed = set(await users(bench))
        assert await effects(bench) == list(range(1, FED + 1))
        await eventually(lambda: bench.query("SELECT id FROM outbox"), lambda rows: not rows)
    assert set(await users_published(bench)) == committed
    assert set(await echoes(bench)) == set(range(1, FED + 1))
    assert await bench.query("SELECT id FROM outbox_parked") == []
    await bench.check()
