"""Drill 5: five messages in a hundred cannot be handled."""

import asyncio
import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

from aiokafka import ConsumerRecord

from app.drill import Ticked
from drills import service
from drills.bench import Bench, Place, eventually, out_of_order
from drills.conftest import MakeBench

GOOD, POISON = 1140, 60

Change = Callable[[dict[str, Any]], object]
Poison = dict[Place, tuple[bytes, bytes | None]]

# What no handler can mend, by what is wrong with it.
HOPELESS: dict[str, bytes | None] = {
    "bytes": b"\xff\xfe\x00",
    "nothing": b"",
    "half a document": b'{"event_id": "',
    "no object": b"[1, 2, 3]",
    "nesting": b"[" * 100_000,
}
# What the mended code can read, by what is done to a good event.
MENDABLE: dict[str, Change] = {
    "schema": lambda body: body.update(number=f"no. {body['number']}"),
    "version": lambda body: body.update(version="2.0.0"),
    "handler fails": lambda body: body.update(fault="always"),
    "handler refuses": lambda body: body.update(fault="permanent"),
}


async def test_poison_ends_in_the_dlq_and_a_replay_applies_it_once(bench_of: MakeBench) -> None:
    """Messages with every kind of fault among good ones; then a mended version is deployed.

    All the poison is in the dead letter topic with its bytes and its origin, the good messages are
    applied as if it had not been there. A replay that is interrupted and repeated applies each
    that can be mended exactly once. An unreadable one is left out, comes back when it is sent all
    the same, is listed once, with its replays, and is gone when it is discarded.
    """
    bench = await bench_of("poison")
    worker = bench.worker()
    events, hopeless = mixed(bench)
    places = await feed(bench, events, hopeless)
    mendable = [event for event, change in events if change]
    await bench.settled(but=mendable)
    await eventually(bench.count_dead_letters, lambda found: found >= POISON * 2)
    await bench.check_commits(but=mendable)
    for consumer in bench.consumers:
        check_letters(await bench.dead_letters(consumer), consumer, places)
        effects = await bench.effects(consumer)
        assert len(effects) == len({effect.event_id for effect in effects}) == GOOD
        assert out_of_order(effects) == []
    assert f"{POISON * 2} dead letters, {POISON * 2} waiting" in bench.app("dlq", "list")
    worker.terminate()
    assert await worker.exit_code(seconds=15) == 0

    # Nobody takes them yet, so all of them are sent again, and again while they are being applied.
    assert await interrupted_replay(bench) == 130
    said = bench.app("dlq", "replay", DRILL_MENDED="1")
    assert f"sent {len(mendable) * 2} of {len(mendable) * 2}" in said, said
    assert f"{len(hopeless) * 2} skipped" in said, said
    so_far = await replayed(bench)
    last = replay(bench, rate=5)  # it has to outlast the start of the worker
    await eventually(lambda: replayed(bench), lambda sent: sent > so_far)
    bench.worker("mended", DRILL_MENDED="1")
    await asyncio.to_thread(last.communicate, timeout=30)
    assert last.returncode == 0
    await bench.settled()
    bench.app("dlq", "replay", "--undecodable", DRILL_MENDED="1")  # for nothing
    left = await dlq_at_rest(bench, len(hopeless), more_than=POISON * 2 + len(hopeless))
    assert "replayed=1" in bench.app("dlq", "list", "--undecodable", DRILL_MENDED="1")
    nothing = bench.app("dlq", "replay", DRILL_MENDED="1")
    assert "sent 0 of 0" in nothing, nothing
    assert await bench.count_dead_letters() == left
    bench.app("dlq", "discard", "--undecodable", "--dry-run", DRILL_MENDED="1")
    assert f"{len(hopeless) * 2} waiting" in bench.app("dlq", "list")
    bench.app("dlq", "discard", "--undecodable", DRILL_MENDED="1")
    assert f"{len(mendable) * 2} dead letters, 0 waiting" in bench.app("dlq", "list")
    for consumer in bench.consumers:
        times = Counter(effect.event_id for effect in await bench.effects(consumer))
        assert times == Counter(bench.sent.keys()), f"{consumer}: not each exactly once"


def mixed(bench: Bench) -> tuple[list[tuple[Ticked, Change | None]], list[bytes | None]]:
    kinds = list(islice(cycle([*HOPELESS, *MENDABLE]), POISON))
    changes = [MENDABLE[kind] for kind in kinds if kind in MENDABLE]
    events: list[tuple[Ticked, Change | None]] = [(bench.event(), None) for _ in range(GOOD)]
    for change in changes:
        events.insert(random.randrange(len(events)), (bench.event(), change))
    return events, [HOPELESS[kind] for kind in kinds if kind in HOPELESS]


async def feed(
    bench: Bench, events: list[tuple[Ticked, Change | None]], hopeless: list[bytes | None]
) -> Poison:
    """Send all of it, well shaken; the poison, by the place that Kafka gave it."""
    messages = [
        (event.key.encode(), encoded(event, change), event, change is not None)
        for event, change in events
    ]
    shaken: list[tuple[bytes, bytes | None, Ticked | None, bool]] = [*messages]
    for value in hopeless:
        shaken.insert(random.randrange(len(shaken)), (b"key-1", value, None, True))
    places = await bench.send_raw([message[:3] for message in shaken])
    return {place: message[:2] for message, place in zip(shaken, places, strict=True) if message[3]}


def encoded(event: Ticked, change: Change | None) -> bytes:
    body = json.loads(event.model_dump_json())
    if change:
        change(body)
    return json.dumps(body).encode()


def check_letters(letters: list[ConsumerRecord], consumer: str, places: Poison) -> None:
    found: Poison = {}
    for letter in letters:
        headers = {name: value.decode() for name, value in letter.headers}
        numbers = int(headers["origin-partition"]), int(headers["origin-offset"])
        found[headers["origin-topic"], *numbers] = (letter.key, letter.value)
        assert headers["consumer"] == consumer
        assert int(headers["attempts"]) == (3 if headers["error-type"] == "HandlerFault" else 1)
        assert headers["error-message"]
        assert headers["first-failed-at"] <= headers["last-failed-at"]
    assert found == places, f"{consumer}: the dead letters are not the poison"
    assert len(letters) == len(places), f"{consumer}: a dead letter is there twice"


async def interrupted_replay(bench: Bench) -> int:
    """`app dlq replay`, slowly, and Ctrl-C when a part is sent; its exit code."""
    process = replay(bench, rate=5)
    await eventually(lambda: replayed(bench), lambda sent: sent >= 5)
    process.send_signal(signal.SIGINT)
    output, _ = await asyncio.to_thread(process.communicate, timeout=20)
    assert b"interrupted" in output, output
    return process.returncode


def replay(bench: Bench, rate: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [service.APP, "dlq", "replay", "--rate", str(rate)],
        cwd=service.ROOT,
        env={**os.environ, **bench.environment, "DRILL_MENDED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Children of a shell's background job ignore Ctrl-C; this one shall not, wherever it runs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def replayed(bench: Bench) -> int:
    """Messages on their way back to their consumers."""
    topics = [f"{bench.topic}.{consumer}.replay" for consumer in bench.consumers]
    return sum([len(await bench.records(topic)) for topic in topics])


async def dlq_at_rest(bench: Bench, hopeless: int, more_than: int = 0) -> int:
    """Wait until what cannot be mended is back; how many dead letters there are, all counted."""
    waiting = f"{hopeless * len(bench.consumers)} waiting"
    seen = await eventually(bench.count_dead_letters, lambda count: count >= more_than + hopeless)
    listed = await eventually(
        lambda: asyncio.to_thread(bench.app, "dlq", "list"), lambda text: waiting in text
    )
    assert f"{POISON * len(bench.consumers)} dead letters" in listed, listed.splitlines()[-1]
    return seen
