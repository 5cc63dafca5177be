"""Drill 13: a console beside a service with dead letters."""

import re

import httpx

from app.platform.kafka.admin import TopicAdmin
from drills.bench import Bench, eventually
from drills.conftest import MakeBench

LETTERS = 3
PLAN = "/letters/plan?action=replay"


async def test_a_console_changes_nothing_unless_it_is_told(bench_of: MakeBench) -> None:
    """Its pages leave no group and no offset behind. It sends nothing without the token of its own form,
    and nothing at all if it is read-only; with both, it sends what the page has listed.
    """
    bench = await bench_of("single")
    worker = bench.worker()
    await bench.send([bench.event(fault="permanent") for _ in range(LETTERS)])
    await eventually(bench.count_dead_letters, lambda found: found == LETTERS)
    worker.terminate()
    await worker.exit_code(seconds=15)

    reader, actor = bench.console("reader"), bench.console("actor", CONSOLE_ACTIONS="true")
    for console in (reader, actor):
        await console.is_ready()
    async with httpx.AsyncClient(base_url=actor.url, timeout=30) as browser:
        for path in ("/", "/topics", f"/topics/{bench.topic}", "/letters", "/story?id=drill"):
            assert (await browser.get(path)).status_code == 200, path
    async with TopicAdmin.connected(bench.settings) as admin:
        own = bench.settings.kafka_group_id
        found = {name for name in await admin.groups() if name.startswith(own)}
    assert found == {f"{own}.{name}" for name in bench.consumers}, "looking left groups behind"

    forged = {"token": "forged"}
    assert await submit(bench, reader.url, {}) == 403, "a read-only console acts"
    assert await submit(bench, actor.url, forged) == 403, "a form of another site acts"
    assert await replayed(bench) == 0
    assert await submit(bench, actor.url, {}) == 303
    await eventually(lambda: replayed(bench), lambda sent: sent == LETTERS)


async def submit(bench: Bench, url: str, changes: dict[str, str]) -> int:
    """Send the form of the page that lists what a replay would send; the status of the answer."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as browser:
        page = (await browser.get(PLAN)).text
        letters = sorted(set(re.findall(r'letters/([^"/]+\.dlq:\d+:\d+)"', page)))
        assert len(letters) == LETTERS
        fields = {"action": "replay", "ids": " ".join(letters)}
        token = {"token": browser.cookies["console_token"]}
        return (await browser.post("/letters/start", data=fields | token | changes)).status_code


async def replayed(bench: Bench) -> int:
    (consumer,) = bench.consumers
    return len(await bench.records(f"{bench.topic}.{consumer}.replay"))
