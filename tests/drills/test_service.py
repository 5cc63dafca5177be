"""The service as it is shipped, from request to effect: `app api` and `app worker`."""

import asyncio
import random
from collections import Counter
from importlib.util import find_spec
from typing import Any

import httpx

from drills.bench import Bench, eventually
from drills.conftest import MakeBench

ORDERS, POSTS = 150, 60
SKUS = ["pen", "ink", "paper"]


async def test_orders_are_counted_once_while_the_worker_is_killed(bench_of: MakeBench) -> None:
    """Users, posts and orders come in over HTTP; the worker is killed twice meanwhile.

    The counts that its consumers keep, seen over HTTP, are those of what was answered with 201.
    """
    bench = await bench_of("", topics=False)
    assert "topics created" in bench.app("topics", "create")
    api, worker = bench.api(), bench.worker()
    needed = [api, worker]
    if find_spec("app.platform.outbox") is not None:
        needed.append(bench.relay())
    await asyncio.gather(*(process.is_ready() for process in needed))
    async with httpx.AsyncClient(base_url=api.url, timeout=20) as http:
        user = await created(http, "/users", email="ada@example.com", username="ada")
        placing = asyncio.create_task(place_orders(http, user["id"]))
        posting = asyncio.create_task(write_posts(http, user["id"]))
        for number in range(2):
            await asyncio.sleep(1)
            worker.kill()
            worker = bench.worker(f"worker-{number}")
        ordered = await placing
        await posting
        await eventually(lambda: counts(http, user["id"]), lambda now: now == (ordered, POSTS))
        await asyncio.sleep(1)
        assert await counts(http, user["id"]) == (ordered, POSTS)
    await ended(bench)


async def place_orders(http: httpx.AsyncClient, user_id: int) -> Counter[str]:
    ordered: Counter[str] = Counter()
    for _ in range(ORDERS):
        sku, quantity = random.choice(SKUS), random.randint(1, 5)
        item = {"sku": sku, "quantity": quantity, "unit_price": "1.50"}
        await created(http, "/orders", user_id=user_id, items=[item])
        ordered[sku] += quantity
    return ordered


async def write_posts(http: httpx.AsyncClient, user_id: int) -> None:
    for number in range(POSTS):
        await created(http, "/posts", author_id=user_id, title=f"No. {number}", body="…")


async def created(http: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await http.post(path, json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def counts(http: httpx.AsyncClient, user_id: int) -> tuple[Counter[str], int]:
    """Return what is reserved of each SKU, and the number of posts in the profile."""
    reserved: Counter[str] = Counter()
    for sku in SKUS:
        answer = await http.get(f"/inventory/{sku}")
        reserved[sku] = answer.json()["reserved"] if answer.status_code == 200 else 0
    profile = (await http.get(f"/users/{user_id}")).json()["profile"]
    return reserved, profile["posts_published"] if profile else 0


async def ended(bench: Bench) -> None:
    """Every process that still runs ends with code 0, and none printed what is no log entry."""
    for process in [process for process in bench.processes if process.running]:
        process.terminate()
        assert await process.exit_code(seconds=20) == 0
    for process in bench.processes:
        assert process.strays() == [], process.name
