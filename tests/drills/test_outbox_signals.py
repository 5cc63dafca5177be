"""The alerts that the documentation recommends fire although the process that they watch is dead."""

import asyncio
import re

import httpx

from drills.bench import eventually
from drills.conftest import MakeBench
from drills.service import ROOT, Process

GAUGE_ALERT = re.compile(
    r"`(?P<whole>max(?: by \([a-z, ]+\))? ?\((?P<name>\w+)\) > (?P<limit>\d+))`"
)
OLD = "UPDATE outbox SET created_at = created_at - interval '1 hour'"
EVENTS = 2_000


def alerts() -> dict[str, tuple[str, float]]:
    """The alerts on gauges in the documentation: the expression, its metric and its limit."""
    pages = [(ROOT / "docs" / name).read_text() for name in ("outbox.md", "consumer.md")]
    found = [match for page in pages for match in GAUGE_ALERT.finditer(page)]
    return {match["whole"]: (match["name"], float(match["limit"])) for match in found}


async def firing(*processes: Process) -> set[str]:
    """The metrics whose alert fires on what Prometheus would scrape from these processes."""
    samples = []
    async with httpx.AsyncClient(timeout=5) as http:
        for process in processes:
            text = (await http.get(f"{process.url}/metrics")).text
            samples += re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE)
    return {
        name
        for name, limit in alerts().values()
        if any(found == name and float(value) > limit for found, value in samples)
    }


async def test_alerts_fire_when_relay_and_worker_are_dead(bench_of: MakeBench) -> None:
    """SIGKILL for both: what they leave behind is seen in the metrics of the API alone."""
    watched = {"outbox_oldest_age_seconds", "kafka_consumer_lag"}
    assert watched <= {name for name, _ in alerts().values()}
    bench = await bench_of("single")
    api, relay, worker = bench.api(), bench.relay(), bench.worker()
    await asyncio.gather(*(process.is_ready() for process in (api, relay, worker)))
    assert await firing(api, relay, worker) & watched == set()
    relay.kill()
    worker.kill()
    async with httpx.AsyncClient(base_url=api.url, timeout=10) as http:
        user = {"email": "ada@example.com", "username": "ada"}
        assert (await http.post("/users", json=user)).status_code == 201
    await bench.query(OLD)
    await bench.feed(EVENTS)
    await eventually(
        lambda: firing(api), lambda found: watched <= found, 60, what="both alerts fire"
    )
