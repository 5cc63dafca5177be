"""Drill 6: handlers that fail, for a while and for ever."""

import itertools
import json
from collections import defaultdict
from pathlib import Path

from app.drill import DELAYS, Fault, Ticked
from drills.bench import Bench, eventually
from drills.conftest import MakeBench

LATE_SECONDS = 3.0


async def test_failures_are_retried_and_then_dead_lettered(
    bench_of: MakeBench, tmp_path: Path
) -> None:
    """Some events fail twice, some always, some permanently, among good ones; in place and with
    delay topics. None is tried before it is due, and none holds the others up."""
    file = tmp_path / "attempts"
    bench = await bench_of("retries", DRILL_ATTEMPTS_FILE=str(file))
    good: list[Ticked] = []
    faulty: dict[Fault, list[Ticked]] = {"twice": [], "always": [], "permanent": []}
    for fault in [*faulty] * 3:
        good += [bench.event() for _ in range(20)]
        faulty[fault].append(bench.event(fault))
    twice, always, permanent = faulty.values()
    bench.worker()
    await bench.send(sorted([*good, *twice, *always, *permanent], key=lambda event: event.number))
    lost = [*always, *permanent]
    await bench.settled(but=lost)
    for consumer in bench.consumers:
        await dead_letters(bench, consumer, len(lost))
        effects = await bench.effects(consumer)
        assert len(effects) == len(good) + len(twice), consumer
        attempts = await attempts_in_headers(bench, consumer)
        assert all(attempts[str(event.event_id)] == 3 for event in always), attempts
        assert all(attempts[str(event.event_id)] == 1 for event in permanent), attempts
    waits = gaps(file, "delayed")
    for event in always:
        assert_waited(waits[str(event.event_id)], late=LATE_SECONDS)
    for event in [*always, *twice]:
        assert gaps(file, "in-place")[str(event.event_id)] == []


async def test_delays_are_kept_over_the_death_of_the_worker(
    bench_of: MakeBench, tmp_path: Path
) -> None:
    """The worker is killed while messages wait in a delay topic; the next one takes them when they
    are due, and not before."""
    file = tmp_path / "attempts"
    bench = await bench_of("retries", DRILL_ATTEMPTS_FILE=str(file))
    first = bench.worker("first")
    await first.is_ready()
    always = await bench.send([bench.event("always") for _ in range(5)])
    topic = f"{bench.topic}.delayed.retry.4s"
    await eventually(lambda: bench.records(topic), lambda found: len(found) == len(always))
    first.kill()
    bench.worker("second")
    await dead_letters(bench, "delayed", len(always))
    waits = gaps(file, "delayed")
    for event in always:
        assert_waited(waits[str(event.event_id)], late=30)
    assert await bench.applied() == 0


async def dead_letters(bench: Bench, consumer: str, count: int) -> None:
    letters = await eventually(
        lambda: bench.dead_letters(consumer), lambda found: len(found) >= count
    )
    assert len(letters) == count, f"{consumer}: {len(letters)} dead letters, not {count}"
    places = {dict(letter.headers)["origin-topic"] for letter in letters}
    assert places == {bench.topic.encode()}


async def attempts_in_headers(bench: Bench, consumer: str) -> dict[str, int]:
    headers = [dict(letter.headers) for letter in await bench.dead_letters(consumer)]
    return {found["ce_id"].decode(): int(found["attempts"]) for found in headers}


def gaps(file: Path, consumer: str) -> dict[str, list[float]]:
    """Of each event, the waits of over a second between attempts, in seconds."""
    times: dict[str, list[float]] = defaultdict(list)
    for line in file.read_text().splitlines():
        attempt = json.loads(line)
        if attempt["consumer"] == consumer:
            times[attempt["event_id"]].append(attempt["at"])
    return {
        event_id: [after - at for at, after in itertools.pairwise(seen) if after - at > 1]
        for event_id, seen in times.items()
    }


def assert_waited(waits: list[float], late: float) -> None:
    expected = [delay.total_seconds() for delay in DELAYS]
    assert len(waits) == len(expected), f"waits of {waits}, not of {expected} seconds"
    for wait, delay in zip(waits, expected, strict=True):
        assert wait >= delay, f"tried after {wait:.3f} s, before the {delay:g} s were over"
        assert wait < delay + late, f"tried after {wait:.3f} s, {delay:g} s were asked for"
