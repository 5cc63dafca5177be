from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY as METRICS
from structlog.testing import capture_logs

from app import tracing
from app.kafka.codec import Message, decode, header
from app.kafka.errors import BrokerUnavailable, MessageTooLarge
from app.kafka.producer import FakeProducer, Outcome, Producer
from app.kafka.publisher import DirectPublisher
from app.tracing import Trace
from tests.unit.kafka.samples import REGISTRY, TOPIC, meter_read


class RecoveringProducer(FakeProducer):
    """Away for the first `failures` calls."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.calls: list[int] = []
        self._failures = failures

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        self.calls.append(len(messages))
        self.available = len(self.calls) > self._failures
        return await super().send_all(messages)


def publisher(
    producer: Producer, deadline: float = 5.0, max_bytes: int = 1_000_000
) -> DirectPublisher:
    return DirectPublisher(producer, REGISTRY, deadline, max_bytes)


def lost() -> float:
    return METRICS.get_sample_value("kafka_events_lost_total", {"topic": TOPIC}) or 0.0


async def test_nothing_is_sent_before_the_transaction_is_committed() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    await published.publish(meter_read())

    assert producer.sent == []


async def test_after_the_commit_all_events_go_out_in_order() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    events = [meter_read(count=n) for n in range(3)]
    for event in events:
        await published.publish(event)
    await published.committed()

    assert [decode(m.topic, m.value, REGISTRY) for m in producer.sent] == events


async def test_an_event_goes_out_once() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    await published.publish(meter_read())
    await published.committed()
    await published.committed()

    assert len(producer.sent) == 1


async def test_without_events_the_producer_is_left_alone() -> None:
    producer = RecoveringProducer(failures=0)
    await publisher(producer).committed()

    assert producer.calls == []


async def test_an_event_carries_the_story_in_which_it_was_published() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    with tracing.bound(Trace("story", "cause")):
        await published.publish(meter_read())
    await published.committed()

    assert header(producer.sent[0].headers, "correlation-id") == "story"
    assert header(producer.sent[0].headers, "causation-id") == "cause"


async def test_what_may_pass_later_is_sent_again() -> None:
    producer = RecoveringProducer(failures=2)
    published = publisher(producer)
    before = lost()
    await published.publish(meter_read())
    await published.committed()

    assert len(producer.sent) == 1
    assert producer.calls == [1, 1, 1]
    assert lost() == before


class LosesTheFirst(FakeProducer):
    """Of its first call it delivers all but the first message."""

    calls = 0

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        self.calls += 1
        if self.calls > 1:
            return await super().send_all(messages)
        self.sent += messages[1:]
        return [BrokerUnavailable("away"), *[None] * len(messages[1:])]


async def test_other_keys_than_that_of_what_failed_are_not_sent_again() -> None:
    producer = LosesTheFirst()
    published = publisher(producer)
    for meter in ("m-1", "m-2", "m-3"):
        await published.publish(meter_read(meter_id=meter))
    await published.committed()

    assert [m.key for m in producer.sent] == [b"m-2", b"m-3", b"m-1"]


async def test_what_follows_with_the_key_of_what_failed_is_sent_again_after_it() -> None:
    producer = LosesTheFirst()
    published = publisher(producer)
    events = [meter_read(count=count) for count in range(3)]
    for event in events:
        await published.publish(event)
    await published.committed()

    sent_again = producer.sent[2:]
    assert [decode(m.topic, m.value, REGISTRY) for m in sent_again] == events


async def test_after_its_deadline_an_event_is_lost_counted_and_logged() -> None:
    producer = FakeProducer()
    producer.available = False
    published = publisher(producer, deadline=0.15)
    before = lost()
    await published.publish(meter_read("m-9"))
    with capture_logs() as logs:
        await published.committed()

    assert lost() == before + 1
    (entry,) = [entry for entry in logs if entry["event"] == "event not published"]
    assert entry["log_level"] == "error"
    assert (entry["topic"], entry["key"]) == (TOPIC, "m-9")
    assert '"meter_id":"m-9"' in entry["value"]
    assert entry["error"] == "BrokerUnavailable: the fake broker is away"


async def test_what_can_never_pass_is_not_tried_again() -> None:
    producer = FakeProducer(topics=[])
    published = publisher(producer, deadline=60)
    before = lost()
    await published.publish(meter_read())
    await published.committed()

    assert lost() == before + 1


async def test_an_event_that_is_too_large_fails_the_transaction() -> None:
    producer = FakeProducer()
    published = publisher(producer, max_bytes=2000)

    with pytest.raises(MessageTooLarge, match="KAFKA_MAX_MESSAGE_BYTES=2000"):
        await published.publish(meter_read(note="x" * 2000))
    await published.committed()
    assert producer.sent == []
