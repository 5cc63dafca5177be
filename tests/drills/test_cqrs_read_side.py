"""The read side under load: projectors are killed, and projections are rebuilt meanwhile."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import asyncpg
import httpx

from drills import service
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process
from drills.test_service import created, ended

WRITERS = 4
WORKERS = 2
REBUILDS, KILLS = 2, 4
SECONDS = 120
PROJECTIONS = ["order-views", "daily-sales", "customer-names"]

Order = dict[str, Any]

# Each pair of columns is compared row by row: the write side, and what is made of it.
VIEWS_DIFFER = """
SELECT w.*, v.* FROM (
    SELECT o.id, o.user_id, u.username, o.status, o.total, o.version, o.created_at, o.updated_at,
        (SELECT sum(quantity) FROM order_items i WHERE i.order_id = o.id) AS item_count
    FROM orders o JOIN users u ON u.id = o.user_id
) w FULL JOIN (
    SELECT order_id AS id, v.user_id, username, status, total, version, placed_at, updated_at,
        item_count
    FROM order_views v LEFT JOIN customer_names c ON c.user_id = v.user_id
) v ON w.id = v.id
WHERE (w.*) IS DISTINCT FROM (v.*)
"""
TOTALS_DIFFER = """
SELECT w.*, d.* FROM (
    SELECT (updated_at AT TIME ZONE 'UTC')::date AS day, count(*) AS orders, sum(total) AS revenue
    FROM orders WHERE status = 'paid' GROUP BY 1
) w FULL JOIN daily_sales d ON w.day = d.day
WHERE (w.day, w.orders, w.revenue) IS DISTINCT FROM (d.day, d.orders, d.revenue)
"""


@dataclass
class Shop:
    """What was commanded and answered, and what was read."""

    http: httpx.AsyncClient
    answers: dict[tuple[int, int], Order] = field(default_factory=dict)
    read: list[Order] = field(default_factory=list)
    seen: dict[int, int] = field(default_factory=dict)
    paying: Decimal = Decimal(0)
    revenue: Decimal = Decimal(0)
    reads: int = 0

    async def write(self, user_id: int) -> None:
        """Place an order, and most of the time pay or cancel it."""
        items = [
            {
                "sku": f"sku-{random.randint(1, 9)}",
                "quantity": random.randint(1, 5),
                "unit_price": "1.50",
            }
            for _ in range(random.randint(1, 3))
        ]
        order = await created(self.http, "/orders", user_id=user_id, items=items)
        self.answers[order["id"], 1] = order
        action = random.choice(["pay", "pay", "cancel", None])
        if action is None:
            return
        if action == "pay":
            self.paying += Decimal(order["total"])
        answer = await self.http.post(
            f"/orders/{order['id']}/{action}", headers={"If-Match": '"1"'}
        )
        assert answer.status_code == 200, answer.text
        self.answers[order["id"], 2] = answer.json()

    async def look(self) -> None:
        """Read a page and the totals. No order goes back, no sale is counted twice."""
        page = await self.http.get("/orders", params={"limit": 100})
        assert page.status_code == 200, page.text
        for order in page.json()["items"]:
            assert order["version"] >= self.seen.get(order["id"], 0), f"went back: {order}"
            self.seen[order["id"]] = order["version"]
            self.read.append(order)
        revenue = await self.sold()
        assert self.revenue <= revenue <= self.paying, "a sale was lost or counted twice"
        self.revenue = revenue
        self.reads += 1

    async def sold(self) -> Decimal:
        answer = await self.http.get("/sales/daily")
        assert answer.status_code == 200, answer.text
        return sum((Decimal(day["revenue"]) for day in answer.json()["days"]), Decimal(0))

    def check_reads(self) -> None:
        """Whatever was read at any time is what a command had answered."""
        for order in self.read:
            assert order == self.answers[order["id"], order["version"]], "a wrong row was visible"


async def test_read_side_is_right_while_projectors_die_and_projections_are_rebuilt(
    bench_of: MakeBench,
) -> None:
    """Orders come in over HTTP; workers are killed at random; projections are rebuilt again and
    again, and some of the rebuilds are killed, too. What is read is never wrong, and in the end
    the read side is the write side, row by row."""
    bench = await bench_of("", topics=False)
    bench.app("topics", "create")
    api, workers = bench.api(), [bench.worker(f"worker-{number}") for number in range(WORKERS)]
    await asyncio.gather(api.is_ready(), *(worker.is_ready() for worker in workers))
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        shop, codes = Shop(http), list[int]()

        def enough() -> bool:
            killed = len(bench.processes) - 1 - WORKERS
            return killed >= KILLS and codes.count(0) >= REBUILDS

        async with (
            meanwhile(looking(shop)),
            meanwhile(rebuilding(bench, codes)),
            meanwhile(killing(bench, workers)),
        ):
            await writing(shop, enough)
        for name in PROJECTIONS:
            assert "rebuilt" in await asyncio.to_thread(bench.app, "projections", "rebuild", name)
        await eventually(lambda: differences(bench), lambda found: not found, seconds=60)
        await shop.look()
    shop.check_reads()
    assert shop.reads > 20
    assert shop.seen
    assert await leftovers(bench) == []
    await ended(bench)


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have `work`, which never ends, done for as long as the block lasts. What it raises, raises."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def writing(shop: Shop, enough: Callable[[], bool]) -> None:
    """Users and their orders, until there was enough of what disturbs."""
    users = [
        (await created(shop.http, "/users", email=f"{name}@example.com", username=name))["id"]
        for name in ("ada", "grace", "edsger")
    ]

    async def write() -> None:
        while not enough():
            await shop.write(random.choice(users))
            await asyncio.sleep(0.05)

    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(write() for _ in range(WRITERS)))


async def looking(shop: Shop) -> None:
    while True:
        await shop.look()
        await asyncio.sleep(0.05)


async def killing(bench: Bench, workers: list[Process]) -> None:
    """SIGKILL a worker at a random moment, and start another one in its place."""
    for number in itertools.count():
        await asyncio.sleep(random.uniform(2.0, 5.0))
        workers.pop(random.randrange(len(workers))).kill()
        workers.append(bench.worker(f"replacement-{number}"))


async def rebuilding(bench: Bench, codes: list[int]) -> None:
    """Rebuild one projection after the other, in small batches; every third rebuild is killed."""
    for number in itertools.count():
        rebuild = start_rebuild(bench, PROJECTIONS[number % 2])
        try:
            if number % 3 == 2:
                await asyncio.sleep(random.uniform(1.0, 2.0))
                rebuild.kill()
            codes.append(await asyncio.to_thread(rebuild.wait))
        finally:
            rebuild.kill()
            rebuild.wait()
        assert codes[-1] in (0, -signal.SIGKILL), "a rebuild failed"


def start_rebuild(bench: Bench, projection: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [service.APP, "projections", "rebuild", projection, "--batch", "20"],
        env={**os.environ, **bench.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


async def differences(bench: Bench) -> list[asyncpg.Record]:
    return [*await bench.query(VIEWS_DIFFER), *await bench.query(TOTALS_DIFFER)]


async def leftovers(bench: Bench) -> list[asyncpg.Record]:
    """Of rebuilds."""
    return await bench.query(
        "SELECT relname::text FROM pg_class WHERE relname LIKE '%\\_shadow' AND relkind = 'r'"
        " UNION SELECT projection FROM projection_rebuilds"
    )
