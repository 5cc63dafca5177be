import asyncio
import time

import pytest

from app.kafka.metrics import ConsumerStatus, Draining


async def test_a_new_consumer_has_no_partitions_and_no_trouble() -> None:
    status = ConsumerStatus("billing")

    assert not status.assigned
    assert status.trouble is None


async def test_what_blocks_a_consumer_is_told_until_it_goes_on() -> None:
    status = ConsumerStatus("billing")
    status.blocked("the database is away")
    assert status.trouble == "the database is away"

    status.unblocked()
    assert status.trouble is None


async def test_waiting_counts_as_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ConsumerStatus("billing")
    monkeypatch.setattr(status, "_last_progress", time.monotonic() - 100)
    assert status.seconds_without_progress >= 100

    await status.wait(0.01)

    assert status.seconds_without_progress < 50


async def test_a_wait_ends_at_once_when_the_consumer_drains() -> None:
    status = ConsumerStatus("billing")
    asyncio.get_running_loop().call_later(0.01, status.draining.set)

    async with asyncio.timeout(5):
        with pytest.raises(Draining):
            await status.wait(60)


async def test_nothing_begins_while_the_consumer_drains() -> None:
    status = ConsumerStatus("billing")
    status.check_draining()
    status.draining.set()

    with pytest.raises(Draining):
        status.check_draining()
    with pytest.raises(Draining):
        await status.wait(0)
