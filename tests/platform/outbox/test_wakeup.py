"""The text of the notifications of commits."""

import pytest

from app.platform.outbox import wakeup


def test_a_notification_names_the_buckets() -> None:
    assert wakeup._payload({320_005, 320_001}) == "320001,320005"
    assert wakeup._buckets("320001,320005") == {320_001, 320_005}


@pytest.mark.parametrize("buckets", [None, range(10_240_000, 10_241_024)])
def test_what_does_not_fit_is_left_to_the_relay(buckets: range | None) -> None:
    assert wakeup._payload(set(buckets) if buckets else None) == ""


@pytest.mark.parametrize("payload", ["", "orders", "1,,2", "-1", "1, 2"])
def test_a_payload_without_buckets_names_none(payload: str) -> None:
    assert wakeup._buckets(payload) == set()
