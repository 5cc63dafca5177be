"""The read side under load: projectors are killed, and projections are rebuilt meanwhile.

Events are counted, never timed: it takes as long as it takes.
"""

import asyncio
import itertools
import os
import random
import signal
import subprocess
from collections.abc import Coroutine
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.util import find_spec
from typing import Any

import asyncpg
import httpx

from drills import service
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process
from drills.test_service import created, ended

USERS = ["ada", "grace", "edsger"]
WRITERS = 4
WORKERS = 2
# Enough has happened after so many of each.
CHANGES, READS, KILLS, REBUILDS, KILLED_REBUILDS = 300, 100, 4, 4, 1
# Writers pause while the read side lacks so many changes, so that rebuilds come to an end on a
# machine on which writing is quicker than projecting.
BACKLOG = 200
# Changes that are projected between one kill and the next.
PROGRESS = 50
CEILING_SECONDS, SETTLING_SECONDS = 600, 120
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


BEHIND = """
SELECT (SELECT coalesce(sum(version), 0) FROM orders)
     - (SELECT coalesce(sum(version), 0) FROM order_views)
"""


@dataclass
class Shop:
    """A record of commands, answers and reads."""

    http: httpx.AsyncClient
    users: dict[int, str] = field(default_factory=dict)
    answers: dict[tuple[int, int], Order] = field(default_factory=dict)
    read: list[Order] = field(default_factory=list)
    seen: dict[int, int] = field(default_factory=dict)
    named: set[int] = field(default_factory=set)
    open: dict[int, Decimal] = field(default_factory=dict)
    paying: Decimal = Decimal(0)
    revenue: Decimal = Decimal(0)
    reads: int = 0

    async def sign_up(self) -> None:
        for name in USERS:
            user = await created(self.http, "/users", email=f"{name}@example.com", username=name)
            self.users[user["id"]] = name

    async def write(self) -> None:
        """Place an order, most of the time pay or cancel any of those that were placed so far, and
        sometimes wait to read that."""
        items = [
            {
                "sku": f"sku-{random.randint(1, 9)}",
                "quantity": random.randint(1, 5),
                "unit_price": "1.50",
            }
            for _ in range(random.randint(1, 3))
        ]
        user_id = random.choice([*self.users])
        order = await created(self.http, "/orders", user_id=user_id, items=items)
        self.answers[order["id"], 1] = order
        self.open[order["id"]] = Decimal(order["total"])
        action = random.choice(["pay", "pay", "cancel", None])
        if action is None:
            return
        id = random.choice([*self.open])
        total = self.open.pop(id)
        if action == "pay":
            self.paying += total
        answer = await self.http.post(f"/orders/{id}/{action}", headers={"If-Match": '"1"'})
        assert answer.status_code == 200, answer.text
        self.answers[id, 2] = answer.json()
        if random.random() < 0.2:
            await self.read_own(id, 2)

    async def read_own(self, order_id: int, version: int) -> None:
        """Ask for what was just written, until the read side has it."""
        while True:
            params = {"min_version": version}
            answer = await self.http.get(f"/orders/{order_id}", params=params)
            if answer.status_code == 200:
                assert answer.json() == self.answers[order_id, version]
                return
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(float(answer.headers["Retry-After"]))

    async def look(self) -> None:
        """Read a page and the totals. No order goes back or away, no sale is counted twice."""
        path = random.choice(["/orders", "/order-views"])
        page = await self.http.get(path, params={"limit": 100})
        assert page.status_code == 200, page.text
        orders: dict[int, Order] = {order["id"]: order for order in page.json()["items"]}
        for id, version in self.seen.items():
            if orders and id >= min(orders):
                assert id in orders, f"gone: {id}"
                assert orders[id]["version"] >= version, f"went back: {orders[id]}"
        for id, order in orders.items():
            self.seen[id] = order["version"]
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
        """Each row that was read is one that a command had answered, with the right name or, before
        the name was first seen, with none."""
        for order in self.read:
            answer = self.answers[order["id"], order["version"]]
            assert order == {**order, **answer}, "a wrong row was visible"
            if "customer_name" in order:
                user, name = order["user_id"], order["customer_name"]
                assert name == self.users[user] or (name is None and user not in self.named), order
                self.named |= {user} if name else set()


@dataclass
class Trouble:
    """A record of what has been done to the service so far."""

    kills: int = 0
    rebuilds: int = 0
    killed_rebuilds: int = 0


async def test_read_side_is_right_under_kills_and_rebuilds(
    bench_of: MakeBench,
) -> None:
    """Orders come in over HTTP; workers, and relays where there are any, are killed at random;
    projections are rebuilt again and again, and some of the rebuilds are killed, too; old events
    come again. No read is ever wrong, and in the end the read side is the write side, row by
    row."""
    bench = await bench_of("", topics=False)
    bench.app("topics", "create")
    api = bench.api()
    mortal = [bench.worker(f"worker-{number}") for number in range(WORKERS)]
    if find_spec("app.platform.outbox") is not None:
        mortal.append(bench.relay())
    await asyncio.gather(*(process.is_ready() for process in [api, *mortal]))
    async with httpx.AsyncClient(base_url=api.url, timeout=60) as http:
        shop, trouble = Shop(http), Trouble()
        await shop.sign_up()
        await first_of(
            writing(bench, shop, trouble),
            looking(shop),
            repeating(bench),
            rebuilding(bench, trouble),
            killing(bench, mortal, trouble),
        )
        await eventually(lambda: differences(bench), lambda found: not found, SETTLING_SECONDS)
        await asyncio.gather(*(rebuilt(bench, name) for name in PROJECTIONS))
        assert await differences(bench) == []
        await shop.look()
    shop.check_reads()
    assert await leftovers(bench) == []
    await ended(bench)


async def first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Have all of `works` done side by side until the first ends, or fails; cancel the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=CEILING_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        assert done, f"not enough has happened within {CEILING_SECONDS} s"
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def writing(bench: Bench, shop: Shop, trouble: Trouble) -> None:
    """Orders and what becomes of them, no more of them than the projectors can follow, until
    enough of everything has happened. Each command is seen to its end: its answer is needed."""
    go = asyncio.Event()

    async def pace() -> None:
        while True:
            if await behind(bench) < BACKLOG:
                go.set()
            else:
                go.clear()
            await asyncio.sleep(0.2)

    async def write() -> None:
        while not enough(shop, trouble):
            await go.wait()
            await shop.write()
            await asyncio.sleep(0.05)

    async def write_all() -> None:
        await asyncio.gather(*(write() for _ in range(WRITERS)))

    await first_of(write_all(), pace())


def enough(shop: Shop, trouble: Trouble) -> bool:
    return (
        len(shop.answers) >= CHANGES
        and shop.reads >= READS
        and trouble.kills >= KILLS
        and trouble.rebuilds >= REBUILDS
        and trouble.killed_rebuilds >= KILLED_REBUILDS
    )


async def looking(shop: Shop) -> None:
    while True:
        await shop.look()
        await asyncio.sleep(0.05)


async def repeating(bench: Bench) -> None:
    """Send old events again, under ids that no inbox knows: as if their rows there had expired."""
    topic = f"{bench.settings.kafka_client_id}.order.created"
    while True:
        await asyncio.sleep(2)
        records = await bench.records(topic)
        await bench.repeat(random.sample(records, min(10, len(records))))


async def killing(bench: Bench, mortal: list[Process], trouble: Trouble) -> None:
    """SIGKILL a process at a random moment among its work, and start another one in its place."""
    for number in itertools.count():
        goal = await projected(bench) + PROGRESS
        while await projected(bench) < goal:
            await asyncio.sleep(0.1)
        await asyncio.sleep(random.uniform(0.0, 1.0))
        victim = mortal.pop(0)
        victim.kill()
        mortal.append(bench.replacement(victim, f"replacement-{number}"))
        trouble.kills += 1


async def rebuilding(bench: Bench, trouble: Trouble) -> None:
    """Rebuild one projection after the other, in small batches; every third rebuild is killed
    when it has written the first of them."""
    while len(await bench.query("SELECT FROM orders LIMIT 100")) < 100:
        await asyncio.sleep(0.1)
    for number in itertools.count():
        name = PROJECTIONS[number % 2 if number % 5 else 2]
        rebuild = start_rebuild(bench, name)
        try:
            if number % 3 == 2:
                while rebuild.poll() is None and not await begun(bench, name):
                    await asyncio.sleep(0.02)
                rebuild.kill()
            code = await asyncio.to_thread(rebuild.wait)
        finally:
            rebuild.kill()
            rebuild.wait()
        assert code in (0, -signal.SIGKILL), "a rebuild failed"
        trouble.rebuilds += code == 0
        trouble.killed_rebuilds += code != 0


def start_rebuild(bench: Bench, projection: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [service.APP, "projections", "rebuild", projection, "--batch", "20"],
        env={**os.environ, **bench.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


async def rebuilt(bench: Bench, projection: str) -> None:
    """Rebuild it in peace."""
    said = await asyncio.to_thread(bench.app, "projections", "rebuild", projection)
    assert "rebuilt" in said, said


async def begun(bench: Bench, projection: str) -> bool:
    """Whether a rebuild is in the middle of its batches."""
    query = "SELECT FROM projection_rebuilds WHERE projection = $1 AND done > 0"
    return bool(await bench.query(query, projection))


async def behind(bench: Bench) -> int:
    """Count the changes of orders that are not yet in the read side."""
    return int((await bench.query(BEHIND))[0][0])


async def projected(bench: Bench) -> int:
    return int((await bench.query("SELECT coalesce(sum(version), 0) FROM order_views"))[0][0])


async def differences(bench: Bench) -> list[asyncpg.Record]:
    return [*await bench.query(VIEWS_DIFFER), *await bench.query(TOTALS_DIFFER)]


async def leftovers(bench: Bench) -> list[asyncpg.Record]:
    """Of rebuilds."""
    return await bench.query(
        "SELECT relname::text FROM pg_class WHERE relname LIKE '%\\_shadow' AND relkind = 'r'"
        " UNION SELECT projection FROM projection_rebuilds"
    )
