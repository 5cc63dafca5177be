"""The outbox and brokers that are up and refuse: the topic waits, alone, and nothing is parked."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.dev.kafka import KafkaCluster
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.refusing import AUTHORIZED, KINDS, Operator, Refusal
from drills.service import Process
from drills.test_outbox_delivery import rows_of

ROUNDS = 8


@pytest.fixture(scope="module")
def three_brokers(drills_folder: Path) -> Iterator[KafkaCluster]:
    """Replication factor 3, with rights."""
    folder = drills_folder / "refusing"
    cluster = KafkaCluster(folder, brokers=3, fresh=True, settings=AUTHORIZED)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.kill()


async def test_refusals_that_pass(bench_of: MakeBench, three_brokers: KafkaCluster) -> None:
    """WRITE on one topic is denied, the broker's clock disagrees, and one of three replicas is gone
    where all have to be in sync. The others' events flow meanwhile, each within moments; the
    relay's readiness names topic and reason; all arrives by itself."""
    bench = await bench_of(
        "",
        three_brokers.bootstrap_servers,
        topics=False,
        KAFKA_TOPIC_REPLICATION_FACTOR="3",
        OUTBOX_BUCKETS="1",  # in one bucket, the topics have to get past each other
    )
    bench.app("topics", "create")
    service = bench.settings.kafka_client_id
    users, posts = f"{service}.user.created", f"{service}.post.created"
    operator = Operator(three_brokers.bootstrap_servers)
    api, relay = bench.api(), bench.relay()
    await asyncio.gather(api.is_ready(), relay.is_ready())
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        for kind in KINDS:
            await refused(bench, http, relay, (users, posts), Refusal(operator, posts, kind))
        await operator.configure(posts, "min.insync.replicas", "3")
        await asyncio.to_thread(three_brokers.kill, 3)
        await sign_up(http, "survivor")
        await eventually(
            lambda: rows_of(bench), lambda rows: rows == 0
        )  # the others have taken over
        await others_flow(bench, http, users, "replicas")
        await eventually(relay.readiness, lambda now: is_named(now, posts, "NotEnoughReplicas"))
        await operator.configure(posts, "min.insync.replicas", "2")
        await eventually(lambda: rows_of(bench), lambda rows: rows == 0)
        await relay.is_ready()
    assert await bench.query("SELECT id FROM outbox_parked") == []
    stored = {row["id"] for row in await bench.query("SELECT id FROM posts")}
    assert {int(record.key or b"0") for record in await bench.records(posts)} == stored
    assert len(stored) == (len(KINDS) + 1) * ROUNDS


async def refused(
    bench: Bench,
    http: httpx.AsyncClient,
    relay: Process,
    topics: tuple[str, str],
    refusal: Refusal,
) -> None:
    """The second of the topics refuses, until the first has had its events."""
    users, posts = topics
    await refusal.begin()
    await others_flow(bench, http, users, refusal.reason)
    await eventually(relay.readiness, lambda now: is_named(now, posts, refusal.reason))
    await refusal.end()
    await eventually(lambda: rows_of(bench), lambda rows: rows == 0)
    await relay.is_ready()


async def others_flow(bench: Bench, http: httpx.AsyncClient, topic: str, name: str) -> None:
    """Users, one after the other, each with a post whose topic refuses: each user's event arrives,
    although it would take the deadline of a send if it waited for the post's."""
    began = time.monotonic()
    for number in range(ROUNDS):
        user = await sign_up(http, f"{name}{number}")
        post = {"user_id": user, "title": "t", "content": "c"}
        answer = await http.post("/posts", json=post)
        assert answer.status_code == 201, answer.text
        await has_key(bench, topic, str(user).encode())
    spent = time.monotonic() - began
    assert spent < ROUNDS * bench.settings.kafka_send_timeout_seconds / 2, f"{spent:.1f} s"


async def has_key(bench: Bench, topic: str, key: bytes) -> None:
    async def keys() -> set[bytes | None]:
        return {record.key for record in await bench.records(topic)}

    await eventually(keys, lambda found: key in found)


async def sign_up(http: httpx.AsyncClient, name: str) -> int:
    answer = await http.post("/users", json={"email": f"{name}@example.com", "username": name})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def is_named(answer: tuple[int, dict[str, Any]], *words: str) -> bool:
    """Whether the process is not ready, and says so of its topics in these words."""
    status, said = answer
    return status == 503 and all(word in said["checks"]["topics"] for word in words)
