from collections import defaultdict

from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from app.kafka.processing import split
from tests.unit.kafka.samples import record

KEYS = st.lists(st.one_of(st.none(), st.sampled_from([b"", b"a", b"b", b"\xff\xfe"]), st.binary()))
LANES = st.integers(1, 9)


def records_of(keys: list[bytes | None]) -> list[ConsumerRecord]:
    return [record(key=key, offset=offset) for offset, key in enumerate(keys)]


@given(KEYS, LANES)
def test_no_record_is_lost_or_doubled(keys: list[bytes | None], lanes: int) -> None:
    shared = split(records_of(keys), lanes)

    assert sorted(r.offset for lane in shared for r in lane) == list(range(len(keys)))


@given(KEYS, LANES)
def test_there_are_at_most_as_many_lanes_as_asked_for_and_none_is_empty(
    keys: list[bytes | None], lanes: int
) -> None:
    shared = split(records_of(keys), lanes)

    assert len(shared) <= lanes
    assert all(shared)


@given(KEYS, LANES)
def test_a_key_stays_in_one_lane_in_its_order(keys: list[bytes | None], lanes: int) -> None:
    lanes_of_key: dict[bytes, set[int]] = defaultdict(set)
    for number, lane in enumerate(split(records_of(keys), lanes)):
        assert [r.offset for r in lane] == sorted(r.offset for r in lane)
        for r in lane:
            if r.key is not None:
                lanes_of_key[r.key].add(number)

    assert all(len(found) == 1 for found in lanes_of_key.values())


@given(st.integers(1, 50), LANES)
def test_records_without_a_key_are_spread_evenly(count: int, lanes: int) -> None:
    sizes = [len(lane) for lane in split(records_of([None] * count), lanes)]

    assert len(sizes) == min(count, lanes)
    assert max(sizes) - min(sizes) <= 1


def test_different_keys_use_all_lanes() -> None:
    keys: list[bytes | None] = [b"key-%d" % n for n in range(200)]

    assert len(split(records_of(keys), 4)) == 4


def test_a_key_has_one_lane_whichever_partition_it_comes_from() -> None:
    same = [record(key=b"k", partition=partition) for partition in range(5)]

    assert split(same, 4) == [same]
