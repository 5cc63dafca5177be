"""Publishing after the commit, when the answer to COMMIT is lost."""

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


async def test_commits_whose_answer_is_lost(bench_of: MakeBench) -> None:
    """Connections of API and worker are cut at COMMIT, before or after the server has got it.

    All that is committed is published, once; nothing else is. Clients are told how it ended.
    """
    bench = await bench_of("echo", topics=False)
    bench.app("topics", "create")
    async with lossy_network(bench.database_url) as network:
        api = bench.api(DATABASE_URL=network.url)
        worker = bench.worker(DATABASE_URL=network.url)
        await asyncio.gather(api.is_ready(), worker.is_ready())
        network.cuts = at_random(Cut.BEFORE_COMMIT, Cut.UNNOTICED)
        statuses = await sign_up(api)
        cut_of_api = len(network.made)
        committed = await users(bench)
        silent = set(committed) - set(await users_published(bench))
        assert not silent, f"{len(silent)} committed events were not published"
        for _ in range(FED // 10):  # in several batches, each a commit for every lane
            await bench.feed(10)
        await bench.settled()
    assert network.made.count(Cut.AFTER_COMMIT) > REQUESTS // 10, network.made
    assert len(network.made) > cut_of_api, "no commit of the worker was cut"
    assert statuses == {201: len(committed), 503: REQUESTS - len(committed)}
    assert await users_published(bench) == committed
    assert await effects(bench) == list(range(1, FED + 1))
    assert await eventually(lambda: echoes(bench), lambda found: len(found) >= FED) == list(
        range(1, FED + 1)
    )
    for process in (api, worker):
        assert process.logged("answer to COMMIT lost") != []
        assert process.logged("event not published") == []
        assert await process.metric("kafka_events_lost_total") == 0
    await bench.check()
