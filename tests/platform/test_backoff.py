"""The back-off between attempts."""

import asyncio
import time

from app.platform.background import in_background
from app.platform.backoff import Backoff, wait_for_event


def test_delays_double_up_to_the_maximum() -> None:
    backoff = Backoff(0.1, 0.5)
    assert [backoff.next() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_a_multiplier_sets_the_growth() -> None:
    backoff = Backoff(1, 100, multiplier=3)
    assert [backoff.next() for _ in range(4)] == [1, 3, 9, 27]


def test_success_starts_over() -> None:
    backoff = Backoff(1, 8)
    assert not backoff.reset(), "nothing has failed yet"
    assert [backoff.next(), backoff.next()] == [1, 2]
    assert backoff.reset()
    assert not backoff.reset()
    assert backoff.next() == 1


def test_jitter_only_shortens_delays() -> None:
    shortest = Backoff(8, 10, jitter=0.5, chance=lambda: 1.0)
    assert [shortest.next(), shortest.next()] == [4, 5]
    delays = {Backoff(8, 8, jitter=0.5).next() for _ in range(50)}
    assert len(delays) > 1
    assert all(4 <= delay <= 8 for delay in delays)


def test_delays_of_a_message_retried_for_days_do_not_overflow() -> None:
    assert Backoff(1, 60).delay(1_000_000) == 60


async def test_pause_waits_for_the_delay_and_counts() -> None:
    backoff = Backoff(0.05, 1)
    started = time.perf_counter()
    await backoff.pause()
    assert time.perf_counter() - started >= 0.04
    assert backoff.failures == 1


async def test_an_interrupt_ends_the_pause() -> None:
    backoff, stopping = Backoff(600, 600), asyncio.Event()
    async with asyncio.timeout(20):
        asyncio.get_running_loop().call_later(0.02, stopping.set)
        await backoff.pause(stopping)
    assert backoff.failures == 1


async def test_waiting_for_an_event_tells_whether_it_came() -> None:
    event = asyncio.Event()
    assert not await wait_for_event(event, 0.01)
    event.set()
    assert await wait_for_event(event, 0)


async def test_work_in_the_background_ends_with_the_block() -> None:
    events: list[str] = []

    async def work() -> None:
        events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("ended")

    async with in_background(work(), "work"):
        await asyncio.sleep(0)
    assert events == ["begun", "ended"]


async def test_a_fault_in_the_background_does_not_end_the_block() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async with in_background(fail(), "work"):
        await asyncio.sleep(0)
