"""The buckets that have rows, in the order in which the tasks of one relay send them."""

import asyncio
import random
from collections.abc import Collection, Sequence

from app.platform.outbox.model import bucket_count_of

_MAX_BUCKETS_PER_BATCH = 8


class BucketQueue:
    """A queue of buckets. One that is queued or being sent is not queued a second time."""

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks
        self._queue: asyncio.Queue[int | None] = asyncio.Queue()
        self._queued: set[int] = set()
        self._sending: set[int] = set()
        self._found_again: set[int] = set()  # seen to have rows while it was being sent

    @property
    def is_empty(self) -> bool:
        return self._queue.empty()

    @property
    def exceeds_a_batch(self) -> bool:
        return self._queue.qsize() > _MAX_BUCKETS_PER_BATCH

    def add(self, buckets: Collection[int]) -> None:
        """Queue buckets that have rows, in random order: relays then compete for different ones."""
        for bucket in random.sample(list(buckets), len(buckets)):
            if bucket in self._sending:
                self._found_again.add(bucket)
            elif bucket not in self._queued:
                self._put(bucket)

    async def take(self) -> list[int]:
        """Wait for buckets, and take a task's fair share; return none after `close`.

        All of them were written with the same number of buckets.
        """
        bucket = await self._queue.get()
        buckets: list[int] = []
        share = min(_MAX_BUCKETS_PER_BATCH, 1 + self._queue.qsize() // self._tasks)
        while bucket is not None:
            buckets.append(bucket)
            self._queued.remove(bucket)
            self._sending.add(bucket)
            if len(buckets) == share or self._queue.empty():
                return buckets
            bucket = self._queue.get_nowait()
            if bucket is None or bucket_count_of(bucket) != bucket_count_of(buckets[0]):
                self._queue.put_nowait(bucket)
                return buckets
        return buckets

    def release(self, buckets: Sequence[int], unfinished: Collection[int]) -> None:
        """Give back what `take` returned. Buckets with more rows go to the end of the queue, so
        that a busy one does not starve the others."""
        for bucket in buckets:
            self._sending.remove(bucket)
            if bucket in unfinished or bucket in self._found_again:
                self._found_again.discard(bucket)
                self._put(bucket)

    def close(self) -> None:
        """End the waiting of every task."""
        for _ in range(self._tasks):
            self._queue.put_nowait(None)

    def _put(self, bucket: int) -> None:
        self._queued.add(bucket)
        self._queue.put_nowait(bucket)
