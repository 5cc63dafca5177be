"""The recommended alerts fire when the process that they watch is dead."""

import asyncio
from collections.abc import Sequence
from functools import partial
from operator import eq
from pathlib import Path

import httpx

from drills.alerts import Scrape, alerts_of_death, firing, scrape, watched_counters
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process

OLD = "UPDATE outbox SET created_at = created_at - interval '1 hour'"
EVENTS = 2_000


class Prometheus:
    """The alerts that fire on the metrics of processes, compared with their first values."""

    def __init__(self, at_first: Scrape, folder: Path) -> None:
        self._at_first, self._folder = at_first, folder

    async def firing(self, processes: Sequence[Process], *, keeps_dead: bool) -> set[str]:
        now = await scrape(processes, keeps_dead=keeps_dead)
        return await firing(self._at_first, now, self._folder)

    async def sees(self, dead: Sequence[str], processes: Sequence[Process]) -> None:
        """Wait until exactly the documented alerts of these dead roles fire."""
        named: set[str] = set().union(*(alerts_of_death()[role] for role in dead))
        target_down = {"TargetDown"}
        target_gone = {alert for alert in named if alert.endswith("Absent")}
        assert len(target_gone) == len(dead)
        configured = partial(self.firing, processes, keeps_dead=True)
        discovered = partial(self.firing, processes, keeps_dead=False)
        what = f"the alerts for a dead {' and '.join(dead)} fire, and no others"
        await eventually(configured, partial(eq, named - target_gone), 60, what=what)
        await eventually(discovered, partial(eq, named - target_down), 60, what=what)


async def test_each_death_is_seen_by_the_alerts_of_the_docs(
    bench_of: MakeBench, tmp_path: Path
) -> None:
    """SIGKILL for the API, the relay and the worker, singly, and for the latter two at once."""
    bench = await bench_of("single")
    await asyncio.to_thread(bench.app, "topics", "create")  # the relays have to send, too
    api, relay, worker = bench.api(), bench.relay(), bench.worker()
    await asyncio.gather(*(process.is_ready() for process in (api, relay, worker)))
    at_first = await scrape([api, relay, worker])
    watched = watched_counters()
    assert len(watched) > 3
    assert watched - {name for name, _, _ in at_first} == set()
    prometheus = Prometheus(at_first, tmp_path)
    await eventually(
        lambda: prometheus.firing([api, relay, worker], keeps_dead=True),
        lambda found: not found,
        60,
        what="no alert fires while all live",
    )

    api.kill()
    await prometheus.sees(["api"], [api, relay, worker])
    api = bench.replacement(api, "api-2")
    await api.is_ready()

    relay.kill()
    await leave_old_event(api, bench, "ada")
    await prometheus.sees(["relay"], [api, relay, worker])
    relay = bench.replacement(relay, "relay-2")

    await relay.is_ready()
    worker.kill()
    await bench.feed(EVENTS)
    await prometheus.sees(["worker"], [api, relay, worker])

    relay.kill()
    await leave_old_event(api, bench, "bob")
    await prometheus.sees(["relay", "worker"], [api, relay, worker])


async def leave_old_event(api: Process, bench: Bench, name: str) -> None:
    """Leave an event in the outbox that has waited for an hour."""
    async with httpx.AsyncClient(base_url=api.url, timeout=10) as http:
        user = {"email": f"{name}@example.com", "username": name}
        assert (await http.post("/users", json=user)).status_code == 201
    await bench.query(OLD)
