"""Topics and consumer groups of one service, deleted from a Kafka that others use, too."""

import time
from collections.abc import Iterable
from typing import Any

from app.platform.dev.errors import ServerFailed, import_development
from app.platform.dev.servers import say
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.topics import Topic

_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.2


def delete_topics_and_groups(settings: KafkaSettings, topics: Iterable[Topic]) -> None:
    """Delete those of `topics` that exist, and all groups of the service. Raises ServerFailed."""
    say("--fresh deletes this service's topics and consumer groups: others use this Kafka, too")
    module = import_development("confluent_kafka.admin", "confluent-kafka")
    admin = module.AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    _delete_groups(admin, f"{settings.kafka_group_id}.", settings.kafka_session_timeout_seconds)
    _delete_topics(admin, {topic.name for topic in topics})


def _delete_groups(admin: Any, prefix: str, session_seconds: float) -> None:
    kafka = import_development("confluent_kafka", "confluent-kafka")
    listed = admin.list_consumer_groups(request_timeout=_ANSWER_SECONDS).result().valid
    left = [group.group_id for group in listed if group.group_id.startswith(prefix)]
    deadline = time.monotonic() + session_seconds + _ANSWER_SECONDS
    waits = False
    while left:
        deleting = admin.delete_consumer_groups(left, request_timeout=_ANSWER_SECONDS)
        errors = {group: future.exception() for group, future in deleting.items()}
        left = [group for group, error in errors.items() if error is not None]
        for group in left:
            has_members = errors[group].args[0].code() == kafka.KafkaError.NON_EMPTY_GROUP
            if not has_members or time.monotonic() > deadline:
                raise ServerFailed(f"the group {group} cannot be deleted: {errors[group]}")
        if left and not waits:
            say("--fresh waits until Kafka drops the members of a killed run")
            waits = True
        time.sleep(_POLL_SECONDS if left else 0)


def _delete_topics(admin: Any, names: set[str]) -> None:
    def find() -> list[str]:
        return sorted(names & admin.list_topics(timeout=_ANSWER_SECONDS).topics.keys())

    if existing := find():
        for future in admin.delete_topics(existing).values():
            future.result()
    deadline = time.monotonic() + _ANSWER_SECONDS
    while left := find():  # brokers list a deleted topic for a moment; it would not be created anew
        if time.monotonic() > deadline:
            raise ServerFailed(f"topics were not deleted: {', '.join(left)}")
        time.sleep(_POLL_SECONDS)
