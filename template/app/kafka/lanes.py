"""Lanes: which messages of a batch may be handled side by side."""

from collections.abc import Sequence
from zlib import crc32

from aiokafka import ConsumerRecord


def split(records: Sequence[ConsumerRecord], lanes: int) -> list[list[ConsumerRecord]]:
    """Share `records` out to at most `lanes` lists, none of them empty, order kept in each.

    Records with one key share a lane, whichever partition they come from; those without a key have
    no order to keep and are spread.
    """
    if lanes == 1:
        return [list(records)] if records else []
    shared: list[list[ConsumerRecord]] = [[] for _ in range(lanes)]
    for index, record in enumerate(records):
        lane = index if record.key is None else crc32(record.key)
        shared[lane % lanes].append(record)
    return [lane for lane in shared if lane]
