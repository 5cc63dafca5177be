"""Orders as events: whatever is killed, the streams are whole, and so is what was published."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.platform.kafka.admin import read_to_end, reading
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process
from drills.test_service import created

CLIENTS, KILLS = 12, 15
EVENTS_BETWEEN_KILLS = 60
TOPICS = ["order.created", "order.paid", "order.cancelled"]
BROKEN_STREAMS = (
    "SELECT stream_id, array_agg(version ORDER BY version) FROM events GROUP BY stream_id"
    " HAVING min(version) <> 1 OR max(version) <> count(*)"
)

Change = tuple[int, int]  # an order and the version that it was brought to


@dataclass
class Clients:
    """Clients that place orders and settle them, at two APIs, and go on when one of them dies."""

    apis: list[Process]
    user_id: int
    confirmed: set[Change] = field(default_factory=set)

    @asynccontextmanager
    async def ordering(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with httpx.AsyncClient(timeout=30) as http, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._order_until(stop, http))
            try:
                yield
            finally:
                stop.set()

    async def _order_until(self, stop: asyncio.Event, http: httpx.AsyncClient) -> None:
        while not stop.is_set():
            try:
                await self._order(http, random.choice(self.apis).url)
            except httpx.TransportError:  # it was killed: nobody knows what became of the request
                await asyncio.sleep(0.05)

    async def _order(self, http: httpx.AsyncClient, api: str) -> None:
        items = [{"sku": "tea", "quantity": 1, "unit_price": "3.50"}]
        placed = await created(http, f"{api}/orders", user_id=self.user_id, items=items)
        self.confirmed.add((placed["id"], placed["version"]))
        # Two at once for one version: one of them wins.
        settled = await asyncio.gather(
            *(
                http.post(f"{api}/orders/{placed['id']}/{action}", headers={"If-Match": '"1"'})
                for action in ("pay", "cancel")
            )
        )
        assert sorted(answer.status_code for answer in settled) == [200, 412]
        self.confirmed.add((placed["id"], 2))


async def appended(bench: Bench) -> list[Change]:
    rows = await bench.query("SELECT stream_id, version FROM events ORDER BY position")
    return [(row["stream_id"], row["version"]) for row in rows]


async def published(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """Return the orders' messages in Kafka, by topic."""
    found = {}
    for name in TOPICS:
        topic = f"{bench.settings.kafka_client_id}.{name}"
        async with reading(bench.settings, [topic]) as client:
            records = [record async for record in read_to_end(client)]
        found[name] = [json.loads(record.value or b"") for record in records]
    return found


async def kill(bench: Bench, mortal: list[Process], apis: list[Process], number: int) -> None:
    """SIGKILL an API or a relay among its work, and start another one in its place."""
    enough = len(await appended(bench)) + EVENTS_BETWEEN_KILLS
    await eventually(lambda: appended(bench), lambda found: len(found) >= enough, seconds=60)
    await asyncio.sleep(random.uniform(0.0, 0.3))
    victim = mortal.pop(0)
    victim.kill()
    replacement = bench.replacement(victim, f"replacement-{number}")
    mortal.append(replacement)
    if victim in apis:
        apis[apis.index(victim)] = replacement
    await replacement.is_ready()


async def test_streams_and_topics_are_whole_after_kills(
    bench_of: MakeBench,
) -> None:
    """After a dozen SIGKILLs among work: every stream is contiguous, every appended event has its
    integration event on Kafka, none is there without its append, and what a client was told is so."""
    bench = await bench_of("", topics=False)
    bench.app("topics", "create")
    apis = [bench.api(f"api-{number}") for number in range(2)]
    # Two APIs for each relay: a request has more to leave half done.
    mortal = [apis[0], apis[1], bench.relay("relay-0")]
    await asyncio.gather(*(process.is_ready() for process in mortal))
    async with httpx.AsyncClient(base_url=apis[0].url, timeout=30) as http:
        user = await created(http, "/users", email="ada@example.com", username="ada")
    clients = Clients(apis, user["id"])
    async with clients.ordering():
        for number in range(KILLS):
            await kill(bench, mortal, apis, number)

    async def waiting() -> int:
        return int((await bench.query("SELECT count(*) FROM outbox"))[0][0])

    await eventually(waiting, lambda rows: rows == 0, seconds=60)
    in_store, on_topics = await appended(bench), await published(bench)
    assert await bench.query(BROKEN_STREAMS) == [], "streams with holes"
    told = {
        (event["order_id"], event["order_version"])
        for events in on_topics.values()
        for event in events
    }
    assert set(in_store) - told == set(), "appended, and lost on the way to Kafka"
    assert told - set(in_store) == set(), "published, and never appended"
    assert clients.confirmed - set(in_store) == set(), "confirmed to a client, and lost"
    assert {(event["order_id"], 1) for event in on_topics["order.created"]} == {
        change for change in in_store if change[1] == 1
    }
    assert "0 differ" in bench.app("event-store", "verify")
