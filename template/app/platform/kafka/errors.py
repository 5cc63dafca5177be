"""Errors of messages. Their classes decide how the service handles them."""


class MessagingError(Exception):
    """The base of the errors of app.platform.kafka."""


class PermanentError(MessagingError):
    """A retry cannot help: the message goes to the dead letter topic at once.

    Handlers raise it, or a subclass.
    """


class UndecodableMessage(PermanentError):
    """The service cannot decode an event from the bytes."""


class SendError(MessagingError):
    """A message was not delivered. `retriable` says whether the same message may succeed later."""

    retriable = False


class MessageTooLarge(SendError):
    """The message exceeds KAFKA_MAX_MESSAGE_BYTES, and was not sent."""


class MessageRejected(SendError):
    """The topic permanently refuses the message, because of its size or format."""


class BrokerUnavailable(SendError):
    """No broker acknowledged the message within the deadline; it may or may not be written."""

    retriable = True


class NotSent(BrokerUnavailable):
    """An earlier message of the same key or partition was refused, so this one was not sent."""


class TopicUnavailable(BrokerUnavailable):
    """The topic refuses all messages at present. `kind` is the name of Kafka's error."""

    def __init__(self, topic: str, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.topic = topic
        self.kind = kind


class UnknownTopic(TopicUnavailable):
    """The topic does not exist. `app topics create` creates the service's topics."""

    def __init__(self, topic: str) -> None:
        reason = f"the topic {topic} does not exist: run `app topics create`"
        super().__init__(topic, reason, type(self).__name__)
