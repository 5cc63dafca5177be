from collections import Counter
from itertools import pairwise

from app.outbox.buckets import bounds_of, bucket_of, division_of, order_key


def test_the_events_of_one_entity_share_a_bucket_whichever_topic_they_go_to() -> None:
    created = bucket_of("shop.order.created", b"7", 32)
    assert bucket_of("shop.order.paid", b"7", 32) == created
    assert order_key("shop.order.created", b"7") == order_key("shop.order.paid", b"7")


def test_entities_of_different_kinds_with_one_id_are_different_keys() -> None:
    assert order_key("shop.order.created", b"7") != order_key("shop.user.created", b"7")


def test_a_bucket_tells_of_how_many_it_is_one() -> None:
    for count in (1, 8, 32, 1024):
        bucket = bucket_of("shop.order.created", b"7", count)
        assert division_of(bucket) == count
        first, after = bounds_of(bucket)
        assert first <= bucket < first + count <= after


def test_no_two_divisions_share_a_bucket() -> None:
    bounds = [bounds_of(bucket_of("a.b.c", b"k", count)) for count in range(1, 1025)]
    assert all(before[1] == after[0] for before, after in pairwise(bounds))


def test_keys_are_spread_over_all_buckets() -> None:
    counts = Counter(bucket_of("a.b.c", str(n).encode(), 32) for n in range(10_000))
    assert len(counts) == 32
    assert min(counts.values()) > 200


def test_the_bucket_of_a_key_never_changes() -> None:
    # Rows that were written by an earlier version of the service are still in their buckets.
    assert bucket_of("shop.order.created", b"7", 32) == 320_017
