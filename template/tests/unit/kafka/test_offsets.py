from aiokafka import ConsumerRecord, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from app.kafka.processing import Progress
from tests.unit.kafka.samples import TOPIC, record

Batch = dict[TopicPartition, list[ConsumerRecord]]

FIRST = TopicPartition(TOPIC, 0)


def batch_of(offsets_by_partition: dict[int, list[int]]) -> Batch:
    return {
        TopicPartition(TOPIC, partition): [
            record(partition=partition, offset=offset) for offset in offsets
        ]
        for partition, offsets in offsets_by_partition.items()
    }


# Offsets rise and may have gaps: transactions and compaction leave them.
BATCHES = st.dictionaries(
    st.integers(0, 3), st.sets(st.integers(0, 60), max_size=12).map(sorted), max_size=4
).map(batch_of)


@st.composite
def half_done(draw: st.DrawFn) -> tuple[Batch, list[ConsumerRecord]]:
    batch = draw(BATCHES)
    records = [r for part in batch.values() for r in part]
    order = draw(st.permutations(records))
    return batch, order[: draw(st.integers(0, len(order)))]


@given(half_done())
def test_nothing_undone_lies_below_what_may_be_committed(
    case: tuple[Batch, list[ConsumerRecord]],
) -> None:
    batch, done = case
    progress = Progress(batch)
    for r in done:
        progress.done(r)

    for tp, committable in progress.committable().items():
        below = [r for r in batch[tp] if r.offset < committable]
        assert below
        assert all(r in done for r in below)


@given(half_done())
def test_the_whole_done_beginning_may_be_committed(
    case: tuple[Batch, list[ConsumerRecord]],
) -> None:
    batch, done = case
    progress = Progress(batch)
    for r in done:
        progress.done(r)

    committable = progress.committable()
    for tp, records in batch.items():
        prefix = 0
        while prefix < len(records) and records[prefix] in done:
            prefix += 1
        assert committable.get(tp) == (records[prefix - 1].offset + 1 if prefix else None)


@given(half_done())
def test_each_partition_is_committed_to_its_end_or_read_again_from_where_it_is_undone(
    case: tuple[Batch, list[ConsumerRecord]],
) -> None:
    batch, done = case
    progress = Progress(batch)
    for r in done:
        progress.done(r)

    committable, undone = progress.committable(), progress.first_undone()
    for tp, records in batch.items():
        if all(r in done for r in records):
            assert tp not in undone
        else:
            # Between the two lie only offsets that hold no record.
            again = undone[tp]
            assert again in [r.offset for r in records if r not in done]
            assert all(r.offset >= again for r in records if r.offset >= committable.get(tp, 0))
    assert progress.complete == (not undone)


@given(half_done())
def test_offsets_once_committed_are_not_committed_again(
    case: tuple[Batch, list[ConsumerRecord]],
) -> None:
    batch, done = case
    progress = Progress(batch)
    reached: dict[TopicPartition, int] = {}
    for r in done:
        progress.done(r)
        offsets = progress.committable()
        assert all(offset > reached.get(tp, -1) for tp, offset in offsets.items())
        progress.committed(offsets)
        reached |= offsets

    assert progress.committable() == {}


def test_a_gap_in_the_offsets_does_not_hold_the_commit_back() -> None:
    batch = batch_of({0: [3, 7, 8]})
    progress = Progress(batch)
    progress.done(batch[FIRST][0])
    progress.done(batch[FIRST][1])

    assert progress.committable() == {FIRST: 8}
    assert progress.first_undone() == {FIRST: 8}


def test_a_record_done_twice_counts_once() -> None:
    batch = batch_of({0: [0, 1]})
    progress = Progress(batch)
    progress.done(batch[FIRST][0])
    progress.done(batch[FIRST][0])

    assert not progress.complete


def test_a_batch_without_records_is_complete() -> None:
    assert Progress({FIRST: []}).complete
    assert Progress({}).complete
