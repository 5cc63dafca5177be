import pytest

from app.kafka.codec import Message
from app.kafka.errors import BrokerUnavailable, MessageTooLarge, UnknownTopic
from app.kafka.producer import FakeProducer

MESSAGE = Message("a", b"k", b"v")


async def test_it_keeps_what_it_was_sent_in_order() -> None:
    producer = FakeProducer()
    messages = [Message("a", b"k", b"%d" % n) for n in range(3)]

    assert await producer.send_all(messages[:2]) == [None, None]
    await producer.send(messages[2])

    assert producer.sent == messages


async def test_it_shows_what_is_on_a_topic() -> None:
    producer = FakeProducer()
    await producer.send(MESSAGE)
    await producer.send(Message("b", None, None))

    assert producer.on("a") == [MESSAGE]


async def test_nothing_is_delivered_while_the_broker_is_away() -> None:
    producer = FakeProducer()
    producer.available = False

    with pytest.raises(BrokerUnavailable):
        await producer.send(MESSAGE)
    with pytest.raises(BrokerUnavailable):
        await producer.ping()
    assert producer.sent == []

    producer.available = True
    await producer.ping()
    await producer.send(MESSAGE)
    assert producer.sent == [MESSAGE]


async def test_a_topic_that_does_not_exist_takes_nothing() -> None:
    producer = FakeProducer(topics=["b"])

    with pytest.raises(UnknownTopic, match="the topic a does not exist"):
        await producer.send(MESSAGE)


async def test_one_bad_message_does_not_stop_other_keys() -> None:
    producer = FakeProducer(max_bytes=1000)
    large = Message("a", b"another", b"x" * 1000)

    outcomes = await producer.send_all([MESSAGE, large, MESSAGE])

    assert [type(outcome) for outcome in outcomes] == [type(None), MessageTooLarge, type(None)]
    assert producer.sent == [MESSAGE, MESSAGE]


async def test_after_a_refused_message_nothing_of_its_key_is_sent() -> None:
    producer = FakeProducer(max_bytes=1000)
    large = Message("a", b"k", b"x" * 1000)

    outcomes = await producer.send_all([MESSAGE, large, MESSAGE])

    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        MessageTooLarge,
        BrokerUnavailable,
    ]
    assert producer.sent == [MESSAGE]


async def test_a_forwarded_message_may_be_larger_than_a_new_one() -> None:
    producer = FakeProducer(max_bytes=1000)
    forwarded = Message("a", b"k", b"x" * 1000, forwarded=True)

    await producer.send(forwarded)

    assert producer.sent == [forwarded]
