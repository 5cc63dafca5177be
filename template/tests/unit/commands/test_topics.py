from app.commands.topics import _line
from app.kafka.admin import State, TopicState
from app.kafka.topics import Topic


def test_a_topic_is_one_line_with_what_differs() -> None:
    topic = Topic("shop.meter.read", 3, 2)

    assert _line(TopicState(topic, State.PRESENT)) == (
        "present   shop.meter.read  partitions=3 replication=2"
    )
    assert _line(TopicState(topic, State.DIFFERENT, "1 partitions")).endswith("(1 partitions)")
