from datetime import timedelta
from typing import Any

import pytest

from app.kafka.subscription import OverloadPolicy, RetryPolicy, Subscription, describe
from tests.unit.kafka.samples import REGISTRY, TOPIC, MeterNamed, MeterRead, meter_read


async def handle(event: object, uow: object) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attempts": 0}, "attempts"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
        ({"initial": -1}, "grow"),
        ({"initial": 2, "maximum": 1}, "grow"),
        ({"initial": float("nan")}, "grow"),
        ({"multiplier": 0.5}, "grow"),
        ({"multiplier": 1e6}, "grow"),
        ({"retry_after": [timedelta(0)]}, "whole number of seconds"),
        ({"retry_after": [timedelta(milliseconds=1500)]}, "whole number of seconds"),
    ],
)
def test_a_retry_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**wrong)


def test_a_delay_given_twice_is_refused_because_its_messages_would_go_round_for_ever() -> None:
    with pytest.raises(ValueError, match="once"):
        RetryPolicy(retry_after=[timedelta(seconds=60), timedelta(minutes=1)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "at least 1"),
        ({"probes": 0}, "at least 1"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"probe_initial": -1}, "grow"),
        ({"probe_initial": 100, "probe_maximum": 10}, "grow"),
    ],
)
def test_an_overload_policy_that_makes_no_sense_is_refused(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OverloadPolicy(**wrong)


@pytest.mark.parametrize("name", ["", "Billing", "a.b", "-a", "a b", "billing\n", "b_c"])
def test_a_name_that_cannot_be_part_of_a_topic_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="consumer name"):
        Subscription(name, {MeterRead: handle})


def test_a_subscription_needs_a_handler_a_lane_and_a_batch() -> None:
    with pytest.raises(ValueError, match="handles no event"):
        Subscription("billing", {})
    with pytest.raises(ValueError, match="at least 1"):
        Subscription("billing", {MeterRead: handle}, concurrency=0)
    with pytest.raises(ValueError, match="at least 1"):
        Subscription("billing", {MeterRead: handle}, batch_size=0)


def test_it_knows_the_handler_and_the_topic_of_each_event() -> None:
    subscription = Subscription("billing", {MeterRead: handle})

    assert subscription.handler(meter_read()) is handle
    assert subscription.topics(REGISTRY) == [TOPIC]
    assert MeterNamed not in subscription.handlers


def test_a_described_error_is_bounded() -> None:
    described = describe(ValueError("x" * 5000))

    assert described["error_type"] == "ValueError"
    assert len(described["error"]) == 1000
