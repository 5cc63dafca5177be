"""The outbox and topics that refuse: only the refusing topic waits, and nothing is parked."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.platform.dev.kafka import KafkaCluster
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.refusing import AUTHORIZED, KINDS, Operator, Refusal
from drills.service import Process
from drills.test_outbox_delivery import rows_of

ROUNDS = 8


@pytest.fixture
def authorized(drills_folder: Path) -> Iterator[KafkaCluster]:
    cluster = KafkaCluster(drills_folder / "authorized", fresh=True, settings=AUTHORIZED)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture
def three_brokers(drills_folder: Path) -> Iterator[KafkaCluster]:
    """Replication factor 3, min.insync.replicas=2."""
    cluster = KafkaCluster(drills_folder / "refusing", brokers=3, fresh=True)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.kill()


async def test_refusals_that_pass(bench_of: MakeBench, authorized: KafkaCluster) -> None:
    """WRITE on one topic is denied; then the broker's clock differs. Events of other topics are sent
    meanwhile, readiness names topic and reason, and everything arrives without a command."""
    bench, users, posts = await in_one_bucket(bench_of, authorized, replicas=1)
    operator = Operator(authorized.bootstrap_servers)
    api, relay = bench.api(), bench.relay()
    await asyncio.gather(api.is_ready(), relay.is_ready())
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        for kind in KINDS:
            await refused(bench, http, relay, (users, posts), Refusal(operator, posts, kind))
    await all_arrived(bench, posts, len(KINDS) * ROUNDS)


async def test_a_topic_that_lacks_replicas_waits_alone(
    bench_of: MakeBench, three_brokers: KafkaCluster
) -> None:
    """One of three replicas is down, and one topic requires all in sync: events of other topics are
    sent at once, and those of the topic when it requires fewer."""
    bench, users, posts = await in_one_bucket(bench_of, three_brokers, replicas=3)
    operator = Operator(three_brokers.bootstrap_servers)
    api, relay = bench.api(), bench.relay()
    await asyncio.gather(api.is_ready(), relay.is_ready())
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        await operator.configure(posts, "min.insync.replicas", "3")
        await asyncio.to_thread(three_brokers.kill, 3)
        for number in range(3):  # the remaining brokers take over
            await sign_up(http, f"survivor{number}")
        await eventually(lambda: rows_of(bench), lambda rows: rows == 0)
        await others_flow(bench, http, users, "replicas")
        await is_named(bench, relay, posts, "NotEnoughReplicas")
        await operator.configure(posts, "min.insync.replicas", "2")
        await eventually(lambda: rows_of(bench), lambda rows: rows == 0)
        await relay.is_ready()
    await all_arrived(bench, posts, ROUNDS)


async def in_one_bucket(
    bench_of: MakeBench, cluster: KafkaCluster, replicas: int
) -> tuple[Bench, str, str]:
    """A service whose topics share a relay, and two of these topics."""
    bench = await bench_of(
        "",
        cluster.bootstrap_servers,
        topics=False,
        KAFKA_TOPIC_REPLICATION_FACTOR=str(replicas),
        OUTBOX_BUCKETS="1",
    )
    bench.app("topics", "create")
    service = bench.settings.kafka_client_id
    return bench, f"{service}.user.created", f"{service}.post.published"


async def all_arrived(bench: Bench, topic: str, count: int) -> None:
    await nothing_parked(bench)
    stored = {row["id"] for row in await bench.query("SELECT id FROM posts")}
    assert {int(record.key or b"0") for record in await bench.records(topic)} == stored
    assert len(stored) == count


async def refused(
    bench: Bench,
    http: httpx.AsyncClient,
    relay: Process,
    topics: tuple[str, str],
    refusal: Refusal,
) -> None:
    """The second topic refuses until the first one has its events."""
    users, posts = topics
    await refusal.begin()
    await others_flow(bench, http, users, refusal.reason)
    await is_named(bench, relay, posts, refusal.reason)
    await refusal.end()
    await eventually(lambda: rows_of(bench), lambda rows: rows == 0)
    await relay.is_ready()


async def others_flow(bench: Bench, http: httpx.AsyncClient, topic: str, name: str) -> None:
    """Create users, each with a post whose topic refuses: each user's event arrives before the
    deadline of the post's send."""
    times = []
    for number in range(ROUNDS):
        user = await sign_up(http, f"{name}{number}")
        post = {"author_id": user, "title": "t", "body": "b"}
        answer = await http.post("/posts", json=post)
        assert answer.status_code == 201, answer.text
        began = time.monotonic()
        await has_key(bench, topic, str(user).encode())
        times.append(time.monotonic() - began)
    # Waiting events take the whole deadline of a send, the others no time.
    assert max(times) < 0.8 * bench.settings.kafka_send_timeout_seconds, (
        f"{max(times):.1f} s for an event of {topic}, which waited for a topic in trouble"
    )


async def has_key(bench: Bench, topic: str, key: bytes) -> None:
    async def keys() -> set[bytes | None]:
        return {record.key for record in await bench.records(topic)}

    await eventually(
        keys,
        lambda found: key in found,
        what=f"{topic} has the event, which waited for a topic in trouble",
        meanwhile=lambda: nothing_parked(bench),
    )


async def nothing_parked(bench: Bench) -> None:
    parked = len(await bench.query("SELECT id FROM outbox_parked"))
    assert parked == 0, f"{parked} events parked that a topic refused for a while"


async def sign_up(http: httpx.AsyncClient, name: str) -> int:
    answer = await http.post("/users", json={"email": f"{name}@example.com", "username": name})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


async def is_named(bench: Bench, process: Process, topic: str, reason: str) -> None:
    """Wait until the process is not ready, because of `topic` and `reason`; nothing is parked."""

    def named(answer: tuple[int, dict[str, Any]]) -> bool:
        status, said = answer
        return status == 503 and all(w in said["checks"]["topics"] for w in (topic, reason))

    await eventually(
        process.readiness,
        named,
        what=f"readiness names {topic} and {reason}",
        meanwhile=lambda: nothing_parked(bench),
    )
