from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from app.kafka.consumer import check_inbox_retention
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import RetryPolicy, Subscription
from tests.unit.kafka.samples import MeterRead

DELAYS = [timedelta(hours=1), timedelta(hours=2)]


async def handle(event: object, uow: object) -> None: ...


def delaying(*delays: timedelta) -> Subscription:
    return Subscription("billing", {MeterRead: handle}, retry=RetryPolicy(retry_after=delays))


def settings(topic_hours: int, inbox_hours: int) -> KafkaSettings:
    return KafkaSettings(
        kafka_topic_retention_hours=topic_hours, inbox_retention_hours=inbox_hours, _env_file=None
    )


@pytest.mark.parametrize(
    ("inbox_hours", "delays", "enough"),
    [(24, [], True), (23, [], False), (27, DELAYS, True), (26, DELAYS, False)],
)
def test_the_inbox_must_outlast_the_topic_and_all_delays(
    inbox_hours: int, delays: list[timedelta], enough: bool
) -> None:
    subscriptions = [delaying(), delaying(*delays)]
    with capture_logs() as logs:
        assert check_inbox_retention(settings(24, inbox_hours), subscriptions) is enough

    warned = [entry for entry in logs if "INBOX_RETENTION_HOURS" in entry["event"]]
    assert bool(warned) is not enough


def test_the_defaults_are_enough() -> None:
    assert check_inbox_retention(KafkaSettings(_env_file=None), [])
