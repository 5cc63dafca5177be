"""The wire-protocol broker inside confluent-kafka, for where Kafka's jars cannot be had.

It has no CreateTopics (a topic exists once it is asked for), waits 3 s at a group join, takes one
member a group, and forgets everything at its end.
"""

from types import TracebackType
from typing import Any, Self

from app.dev.errors import ServerFailed, development

_ANSWER_SECONDS = 10.0


class MockBroker:
    """A broker in this process, for as long as it is started."""

    def __init__(self) -> None:
        self._client: Any = None
        self._address = ""

    @property
    def bootstrap_servers(self) -> str:
        return self._address

    @property
    def running(self) -> bool:
        return self._client is not None

    def start(self) -> None:
        confluent_kafka = development("confluent_kafka", "confluent-kafka")
        # Level 2 keeps librdkafka from telling on stderr that a mock cluster is in use: we say so.
        self._client = confluent_kafka.Producer({"test.mock.num.brokers": 1, "log_level": 2})
        try:
            brokers = self._client.list_topics(timeout=_ANSWER_SECONDS).brokers
        except confluent_kafka.KafkaException as error:
            self.stop()
            raise ServerFailed(f"the mock broker does not answer: {error}") from error
        self._address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers.values())

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
