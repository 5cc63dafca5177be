"""Errors of messages. Their classes decide what the service does about them."""


class MessagingError(Exception):
    """Base of every error raised by app.platform.kafka."""


class PermanentError(MessagingError):
    """Trying again cannot help: the message goes to the dead letter topic at once.

    Handlers raise it (or a class of their own derived from it).
    """


class UndecodableMessage(PermanentError):
    """The bytes are no event that this service can read."""


class SendError(MessagingError):
    """A message was not delivered. `retriable` tells whether the same message may pass later."""

    retriable = False


class MessageTooLarge(SendError):
    """The message exceeds KAFKA_MAX_MESSAGE_BYTES; it was refused before it reached the client."""


class MessageRejected(SendError):
    """The topic does not take this message, for its own size or format: it is refused for good."""


class BrokerUnavailable(SendError):
    """No broker took the message within the deadline; it may or may not have been written."""

    retriable = True


class NotSent(BrokerUnavailable):
    """An earlier message of the same key or partition was refused, so this one was not sent."""


class TopicUnavailable(BrokerUnavailable):
    """The topic refuses messages for now, whatever is in them; other topics may take theirs.

    `kind` is the name of Kafka's error.
    """

    def __init__(self, topic: str, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.topic = topic
        self.kind = kind


class UnknownTopic(TopicUnavailable):
    """The topic does not exist. `app topics create` makes the service's topics."""

    def __init__(self, topic: str) -> None:
        reason = f"the topic {topic} does not exist: `app topics create` makes it"
        super().__init__(topic, reason, type(self).__name__)
