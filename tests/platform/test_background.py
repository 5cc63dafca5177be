"""The wake-up of work in the background."""

import asyncio

from app.platform.background import WakeUp


def test_names_are_taken_together_and_once() -> None:
    wake_up = WakeUp()
    wake_up.name([1, 2])
    wake_up.name([2, 3])
    assert wake_up.is_set()
    assert wake_up.take() == {1, 2, 3}
    assert not wake_up.is_set()
    assert wake_up.take() == set()


def test_one_that_names_nothing_may_be_about_anything() -> None:
    wake_up = WakeUp()
    wake_up.name([1])
    wake_up.set()
    wake_up.name([2])
    assert wake_up.take() is None
    wake_up.name([3])
    assert wake_up.take() == {3}


async def test_a_name_ends_the_waiting() -> None:
    wake_up = WakeUp()
    waiting = asyncio.create_task(wake_up.wait())
    await asyncio.sleep(0)
    wake_up.name([1])
    async with asyncio.timeout(20):
        assert await waiting
