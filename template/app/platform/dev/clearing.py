"""Topics and consumer groups of one service, deleted from a Kafka that others use, too."""

import time
from collections.abc import Callable
from typing import Any

from app.platform.dev.errors import ServerFailed, import_development
from app.platform.dev.servers import say
from app.platform.kafka.topics import failure_topic, group_of
from app.platform.runtime import Context

_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.2
# A broker that has just started loads its groups first.
_LOADING = {"COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR"}


def delete_topics_and_groups(context: Context) -> None:
    """Delete the groups and topics of the service, but no topic of failures that another one shares.

    Raises ServerFailed.
    """
    say("--fresh deletes this service's topics and consumer groups: others use this Kafka, too")
    kafka = import_development("confluent_kafka", "confluent-kafka")
    module = import_development("confluent_kafka.admin", "confluent-kafka")
    admin = module.AdminClient({"bootstrap.servers": context.kafka.kafka_bootstrap_servers})
    groups = {group_of(entry.name, context.kafka) for entry in context.subscriptions}
    topics = {topic.name for topic in context.topics()}
    session_seconds = context.kafka.kafka_session_timeout_seconds
    try:
        there = _list_groups(admin)
        shared = _shared_topics(admin, topics, there - groups)
        _delete_groups(admin, groups & there, session_seconds + _ANSWER_SECONDS)
        _delete_topics(admin, topics - shared)
    except kafka.KafkaException as error:
        raise ServerFailed(f"--fresh cannot delete topics and groups: {error}") from error


def _list_groups(admin: Any) -> set[str]:
    found: set[str] = set()

    def errors() -> list[Exception]:
        listed = admin.list_consumer_groups(request_timeout=_ANSWER_SECONDS).result()
        found.update(group.group_id for group in listed.valid)
        return list(listed.errors)

    _repeat(errors, _LOADING, _ANSWER_SECONDS)
    return found


def _shared_topics(admin: Any, topics: set[str], groups: set[str]) -> set[str]:
    """Return the failure topics that a consumer of one of `groups` has, too.

    Consumers of one name, in two services, that read the same topic have the same failure topics.
    """
    failures = [failure for failure in map(failure_topic, topics) if failure is not None]
    shared: set[str] = set()
    for group in groups:
        mine = [failure for failure in failures if failure.consumer == group.rpartition(".")[2]]
        if mine:
            read = _topics_read(admin, group)
            shared |= {failure.name for failure in mine if failure.origin in read}
    return shared


def _topics_read(admin: Any, group: str) -> set[str]:
    kafka = import_development("confluent_kafka", "confluent-kafka")
    found: set[str] = set()

    def errors() -> list[Exception]:
        request = [kafka.ConsumerGroupTopicPartitions(group)]
        answer = admin.list_consumer_group_offsets(request, request_timeout=_ANSWER_SECONDS)[group]
        if (error := answer.exception()) is not None:
            return [error]
        found.update(partition.topic for partition in answer.result().topic_partitions)
        return []

    _repeat(errors, _LOADING, _ANSWER_SECONDS)
    return found


def _delete_groups(admin: Any, groups: set[str], seconds: float) -> None:
    left = set(groups)
    waits = False

    def errors() -> list[Exception]:
        nonlocal left, waits
        if not left:
            return []
        deleting = admin.delete_consumer_groups(sorted(left), request_timeout=_ANSWER_SECONDS)
        failed = {group: error for group, f in deleting.items() if (error := f.exception())}
        left = {group for group, error in failed.items() if _code(error) != "GROUP_ID_NOT_FOUND"}
        if not waits and any(_code(failed[group]) == "NON_EMPTY_GROUP" for group in left):
            say("--fresh waits until Kafka drops the members of a killed run")
            waits = True
        return [failed[group] for group in left]

    _repeat(errors, {*_LOADING, "NON_EMPTY_GROUP"}, seconds)


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


def _repeat(attempt: Callable[[], list[Exception]], retriable: set[str], seconds: float) -> None:
    """Repeat `attempt` until it returns no error. Raises one that does not pass."""
    deadline = time.monotonic() + seconds
    while errors := attempt():
        for error in errors:
            if _code(error) not in retriable or time.monotonic() > deadline:
                raise error
        time.sleep(_POLL_SECONDS)


def _code(error: Any) -> str:
    name: str = error.args[0].name()
    return name
