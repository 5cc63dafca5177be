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
from tests.platform.lossy import Cut, lossy_network


async def test_no_outbox_row_depends_on_the_answer(bench_of: MakeBench) -> None:
    """Connections of API, worker and relay are cut at COMMIT, before or after the server has got it.

    All that is committed is published; nothing else is. A relay whose answer is lost may send twice.
    """
    bench = await bench_of("echo", topics=False)
    bench.app("topics", "create")
    async with (
        lossy_network(bench.database_url) as of_api,
        lossy_network(bench.database_url) as of_worker,
        lossy_network(bench.database_url) as of_relay,
    ):
        networks = (of_api, of_worker, of_relay)
        api = bench.api(DATABASE_URL=of_api.url)
        worker = bench.worker(DATABASE_URL=of_worker.url)
        relay = bench.relay(DATABASE_URL=of_relay.url)
        await asyncio.gather(*(process.is_ready() for process in (api, worker, relay)))
        for network in networks:
            network.cuts = at_random(Cut.BEFORE_COMMIT)
        statuses = await sign_up(api)
        committed = set(await users(bench))
        assert statuses[201] <= len(committed), "a request that was rolled back got 201"
        for _ in range(FED // 10):
            await bench.feed(10)
        await bench.settled()
        assert of_api.made.count(Cut.AFTER_COMMIT) > REQUESTS // 10, of_api.made
        assert Cut.AFTER_COMMIT in of_worker.made, "no commit of the worker was cut"
        assert Cut.AFTER_COMMIT in of_relay.made, "no commit of the relay was cut"
        for network in networks:
            network.cuts = lambda: None
        assert await effects(bench) == list(range(1, FED + 1))
        await eventually(lambda: bench.query("SELECT id FROM outbox"), lambda rows: not rows)
    assert set(await users_published(bench)) == committed
    assert set(await echoes(bench)) == set(range(1, FED + 1))
    assert await bench.query("SELECT id FROM outbox_parked") == []
    await bench.check()
