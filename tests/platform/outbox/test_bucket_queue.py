"""The queue of buckets that a relay's tasks share."""

import asyncio

from app.platform.outbox.bucket_queue import BucketQueue

OF_32 = [320_000 + number for number in range(32)]
OF_8 = [80_000 + number for number in range(8)]


async def take(queue: BucketQueue) -> list[int]:
    async with asyncio.timeout(20):
        return await queue.take()


async def test_tasks_get_their_share_of_the_buckets() -> None:
    queue = BucketQueue(tasks=4)
    queue.add(OF_32[:16])
    first = await take(queue)
    assert len(first) == 4
    rest = [await take(queue) for _ in range(16 - len(first)) if not queue.is_empty]
    assert sorted([*first, *(bucket for part in rest for bucket in part)]) == OF_32[:16]


async def test_a_batch_is_limited_in_buckets() -> None:
    queue = BucketQueue(tasks=1)
    queue.add(OF_32)
    assert len(await take(queue)) == 8


async def test_buckets_of_different_counts_are_taken_apart() -> None:
    queue = BucketQueue(tasks=1)
    queue.add(OF_8[:2])
    queue.add(OF_32[:2])
    assert sorted(await take(queue)) == OF_8[:2]
    assert sorted(await take(queue)) == OF_32[:2]


async def test_a_bucket_is_sent_by_one_task_at_a_time() -> None:
    queue = BucketQueue(tasks=2)
    queue.add([OF_32[0]])
    taken = await take(queue)
    queue.add([OF_32[0]])
    assert queue.is_empty
    queue.release(taken, unfinished=())
    assert await take(queue) == taken, "it was found again while it was being sent"
    queue.release(taken, unfinished=())
    assert queue.is_empty


async def test_an_unfinished_bucket_waits_behind_the_others() -> None:
    queue = BucketQueue(tasks=8)
    queue.add([OF_32[0]])
    taken = await take(queue)
    queue.add([OF_32[1]])
    queue.release(taken, unfinished=taken)
    assert [await take(queue), await take(queue)] == [[OF_32[1]], [OF_32[0]]]


async def test_close_ends_the_waiting_of_every_task() -> None:
    queue = BucketQueue(tasks=2)
    waiting = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.close()
    async with asyncio.timeout(20):
        assert await asyncio.gather(*waiting) == [[], []]


async def test_a_bucket_named_again_before_it_is_sent_is_sent_once() -> None:
    queue = BucketQueue(tasks=1)
    queue.add({OF_32[0]})
    queue.add({OF_32[0]})
    taken = await take(queue)
    queue.release(taken, unfinished=())
    assert queue.is_empty
