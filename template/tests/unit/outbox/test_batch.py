from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from app.kafka.codec import Message
from app.kafka.errors import BrokerUnavailable, MessageRejected, SendError, UnknownTopic
from app.kafka.producer import Outcome
from app.outbox.batch import Batch, Unsendable
from app.outbox.buckets import order_key
from app.outbox.store import Pending


def row(number: int, key: str = "k", topic: str = "a.b.c", attempts: int = 0) -> Pending:
    message = Message(topic, key.encode(), b"{}")
    return Pending(number, 320_000, attempts, order_key(topic, key.encode()), message)


def ids(rows: Sequence[Pending]) -> list[int]:
    return [row.id for row in rows]


def test_rows_of_different_keys_go_together() -> None:
    batch = Batch([row(1, "a"), row(2, "b"), row(3, "a")], 5)
    assert ids(batch.next_wave()) == [1, 2, 3]
    assert batch.next_wave() == []


def test_a_key_that_goes_on_to_another_topic_waits_for_the_acknowledgement() -> None:
    batch = Batch([row(1), row(2, topic="a.b.d"), row(3), row(4, "other", "a.b.d")], 5)
    assert ids(batch.next_wave()) == [1, 4]
    assert ids(batch.next_wave()) == [2]
    assert ids(batch.next_wave()) == [3]


def test_after_a_failure_nothing_of_that_key_is_sent() -> None:
    batch = Batch([row(1), row(2, topic="a.b.d"), row(3, "other", "a.b.d")], 5)
    batch.settle(batch.next_wave(), [MessageRejected("no"), None])
    assert batch.next_wave() == []
    assert ids(batch.sent) == [3]
    assert batch.hopeless == {1: "MessageRejected: no"}


def test_only_the_first_failure_of_a_key_counts() -> None:
    batch = Batch([row(1), row(2), row(3)], 5)
    batch.settle(batch.next_wave(), [MessageRejected("no"), BrokerUnavailable("held back"), None])
    assert batch.hopeless.keys() == {1}
    assert batch.outage is None
    assert ids(batch.sent) == [3]  # it is on the topic: it must not be sent again


def test_an_outage_counts_nothing_and_ends_the_batch() -> None:
    batch = Batch([row(1), row(2, topic="a.b.d")], 1)
    batch.settle(batch.next_wave(), [BrokerUnavailable("away")])
    assert batch.next_wave() == []
    assert (batch.attempted, batch.hopeless, batch.moved) == ([], {}, False)
    assert batch.outage is not None


def test_a_missing_topic_is_tried_again_until_the_last_attempt() -> None:
    batch = Batch([row(1, "a", attempts=3), row(2, "b", attempts=4)], 5)
    batch.settle(batch.next_wave(), [UnknownTopic("a.b.c"), UnknownTopic("a.b.c")])
    assert ids(batch.attempted) == [1]
    assert batch.hopeless.keys() == {2}
    assert batch.missing_topics == {"a.b.c"}


def test_rows_that_failed_before_go_last() -> None:
    batch = Batch([row(1, "a", attempts=1), row(2, "b"), row(3, "a"), row(4, "b", "a.b.d")], 5)
    assert ids(batch.next_wave()) == [2]
    assert ids(batch.next_wave()) == [4]
    assert ids(batch.next_wave()) == [1, 3]


def test_a_wave_at_which_the_client_failed_is_sent_row_by_row() -> None:
    batch = Batch([row(1, "a"), row(2, "b"), row(3, "a")], 2)
    batch.one_by_one(batch.next_wave())
    for number, outcome in [(1, Unsendable("why")), (2, None)]:
        wave = batch.next_wave()
        assert ids(wave) == [number]
        batch.settle(wave, [outcome])
    assert batch.next_wave() == []  # 3 follows 1
    assert ids(batch.attempted) == [1]


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x.y.p", "x.y.q"])), max_size=30)
OUTCOMES = st.sampled_from([None, None, None, MessageRejected("no"), UnknownTopic("where")])


@given(ROWS, st.data())
def test_no_row_is_sent_before_an_earlier_one_of_its_key_was_acknowledged(
    rows: list[tuple[str, str]], data: st.DataObject
) -> None:
    pending = [row(number, key, topic) for number, (key, topic) in enumerate(rows)]
    batch = Batch(pending, 2)
    sent: set[int] = set()
    while wave := batch.next_wave():
        for one in wave:
            before = [r for r in pending if r.order_key == one.order_key and r.id < one.id]
            together = {r.id for r in wave if r.message.topic == one.message.topic}
            assert all(r.id in sent or r.id in together for r in before)
        outcomes = in_order(wave, data)
        batch.settle(wave, outcomes)
        sent |= {r.id for r, outcome in zip(wave, outcomes, strict=True) if outcome is None}
    assert set(ids(batch.sent)) == sent
    assert not sent & batch.hopeless.keys()


def in_order(wave: Sequence[Pending], data: st.DataObject) -> list[Outcome]:
    """Outcomes as a producer gives them: nothing of a key passes after a refusal."""
    refused: dict[object, SendError] = {}
    outcomes: list[Outcome] = []
    for one in wave:
        outcome: Outcome = refused.get(one.order_key) or data.draw(OUTCOMES)
        if outcome is not None:
            refused[one.order_key] = BrokerUnavailable("an earlier one was refused")
        outcomes.append(outcome)
    return outcomes
