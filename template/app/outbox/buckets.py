"""Buckets: what one relay takes at a time, so that any number of relays keep the order by key.

A bucket's number tells how many buckets there were when its rows were written: 320005 is bucket 5
of 32. Rows of the old and of the new division are thus told apart after OUTBOX_BUCKETS has changed.
"""

from zlib import crc32

_DIVISION = 10_000

OrderKey = tuple[str, bytes]


def order_key(topic: str, key: bytes) -> OrderKey:
    """What keeps its order: the events of one entity, whichever of its topics they go to."""
    return topic.rpartition(".")[0], key


def bucket_of(topic: str, key: bytes, buckets: int) -> int:
    """The bucket of a message where there are `buckets`."""
    entity, key = order_key(topic, key)
    return buckets * _DIVISION + crc32(entity.encode() + b"\0" + key) % buckets


def division_of(bucket: int) -> int:
    """How many buckets there were when rows of `bucket` were written."""
    return bucket // _DIVISION


def bounds_of(bucket: int) -> tuple[int, int]:
    """The first number of the bucket's division, and the first after it."""
    first = division_of(bucket) * _DIVISION
    return first, first + _DIVISION
