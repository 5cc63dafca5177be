"""Commits that are cut before their answer: what was fed, and what came of it."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable

import httpx

from app import wiring
from app.drill import Echoed
from app.platform.events.event import BaseEvent, EventRegistry
from app.users.events import UserCreated
from drills.bench import Bench
from drills.service import Process
from tests.platform.lossy import Cut

REQUESTS, FED = 100, 200


def at_random(*others: Cut) -> Callable[[], Cut | None]:
    """Cut a quarter of the commits once they are made, and a tenth in one of the other ways."""
    chance = random.Random(15)

    def choose() -> Cut | None:
        number = chance.random()
        if number < 0.25:
            return Cut.AFTER_COMMIT
        return chance.choice(others) if number < 0.35 else None

    return choose


async def sign_up(api: Process) -> Counter[int]:
    """Sign up users, a few at once; how often each status was answered."""
    statuses: Counter[int] = Counter()
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        for start in range(0, REQUESTS, 4):
            bodies = [
                {"email": f"u{n}@example.com", "username": f"user{n}"}
                for n in range(start, start + 4)
            ]
            answers = await asyncio.gather(*(http.post("/users", json=body) for body in bodies))
            statuses.update(answer.status_code for answer in answers)
    return statuses


async def users(bench: Bench) -> list[int]:
    """The ids of the users: each has an event."""
    return [row[0] for row in await bench.query("SELECT id FROM users ORDER BY id")]


async def effects(bench: Bench) -> list[int]:
    """The numbers of the effects: each has an echo."""
    return sorted(effect.number for effect in await bench.effects("echo"))


async def published(bench: Bench, event: type[BaseEvent], field: str) -> list[int]:
    """`field` of each event of that type that is on its topic."""
    registry = EventRegistry(bench.settings.kafka_client_id, wiring.service.events)
    records = await bench.records(registry.topic(event))
    return sorted(json.loads(record.value)[field] for record in records)


async def users_published(bench: Bench) -> list[int]:
    return await published(bench, UserCreated, "user_id")


async def echoes(bench: Bench) -> list[int]:
    return await published(bench, Echoed, "number")
