"""Brokers that are up and refuse: what passes is waited for, and a size leads to a shorter letter."""

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.drill import Ticked
from app.platform.dev.kafka import KafkaCluster
from app.platform.kafka.codec import ERROR_TYPE, OMITTED_BYTES, ORIGIN_OFFSET, header
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.refusing import AUTHORIZED, KINDS, Operator, Refusal
from drills.service import Process

REFUSED_SECONDS = 3.0


@pytest.fixture(scope="module")
def authorized(drills_folder: Path) -> Iterator[KafkaCluster]:
    cluster = KafkaCluster(drills_folder / "authorized", fresh=True, settings=AUTHORIZED)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.kill()


async def test_refusals_that_pass(bench_of: MakeBench, authorized: KafkaCluster) -> None:
    """WRITE is denied, and then the broker's clock disagrees, for some seconds: each event of three
    requests arrives within the deadline of its send, and readiness names topic and reason."""
    bench = await bench_of("", authorized.bootstrap_servers, topics=False)
    bench.app("topics", "create")
    api = bench.api()
    await api.is_ready()
    topic = f"{bench.settings.kafka_client_id}.user.created"
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        for kind in KINDS:
            refusal = Refusal(Operator(authorized.bootstrap_servers), topic, kind)
            await refused(api, http, refusal, topic)
    stored = sorted(row["id"] for row in await bench.query("SELECT id FROM users"))
    keys = {int(record.key or b"0") for record in await bench.records(topic)}
    assert sorted(keys) == stored
    await nothing_lost(api)
    assert await api.metric("kafka_topic_refusals_total", topic=topic) > 0
    assert await api.metric("kafka_producer_replacements_total") == 0


async def refused(api: Process, http: httpx.AsyncClient, refusal: Refusal, topic: str) -> None:
    await refusal.begin()
    names = [f"{refusal.reason}{number}" for number in range(3)]
    signing_up = asyncio.gather(*(sign_up(http, name) for name in names))
    await eventually(
        api.readiness,
        lambda now: is_named(now, topic, refusal.reason),
        what=f"readiness names {topic} and {refusal.reason}",
        meanwhile=lambda: nothing_lost(api),
    )
    await asyncio.sleep(REFUSED_SECONDS)
    await refusal.end()
    await signing_up
    await api.is_ready()


async def nothing_lost(api: Process) -> None:
    lost = await api.metric("kafka_events_lost_total")
    assert lost == 0, f"{lost:.0f} events lost that a topic refused for a while"


async def sign_up(http: httpx.AsyncClient, name: str) -> None:
    answer = await http.post("/users", json={"email": f"{name}@example.com", "username": name})
    assert answer.status_code == 201, answer.text


def is_named(answer: tuple[int, dict[str, Any]], *words: str) -> bool:
    """Whether the process is not ready, and says so of its topics in these words."""
    status, said = answer
    return status == 503 and all(word in said["checks"]["topics"] for word in words)


async def test_dead_letters_that_their_topic_takes_only_in_part(bench_of: MakeBench) -> None:
    """The dead letter topic takes less than the messages: their letters come without what is too
    much, and what is behind them is applied."""
    bench = await bench_of("single")
    (dlq,) = (f"{bench.topic}.{consumer}.dlq" for consumer in bench.consumers)
    await Operator(bench.settings.kafka_bootstrap_servers).configure(
        dlq, "max.message.bytes", "3000"
    )
    worker = bench.worker()
    await worker.is_ready()
    poison = await bench.send([too_large(bench) for _ in range(3)])
    good = await bench.feed(50)
    await bench.settled(but=poison, meanwhile=lambda: no_letter_waits(worker))
    assert await bench.applied() == len(good)
    letters = await eventually(lambda: bench.dead_letters("single"), lambda found: len(found) == 3)
    places = sorted(str(bench.sent[event.event_id].place[2]) for event in poison)
    assert sorted(header(letter.headers, ORIGIN_OFFSET) or "" for letter in letters) == places
    for letter in letters:
        assert int(header(letter.headers, OMITTED_BYTES) or 0) > 3000
        assert header(letter.headers, ERROR_TYPE)
    assert await replacements(worker) == 0


async def no_letter_waits(worker: Process) -> None:
    _, said = await worker.readiness()
    assert "MessageRejected" not in str(said), f"a letter of a refused size is sent again: {said}"


def too_large(bench: Bench) -> Ticked:
    """A message for which the handler fails, and whose key alone is too much for a dead letter."""
    event = bench.event("permanent")
    return event.model_copy(update={"name": secrets.token_hex(10_000)})  # nothing compresses it


async def replacements(process: Process) -> float:
    return await process.metric("kafka_producer_replacements_total")
