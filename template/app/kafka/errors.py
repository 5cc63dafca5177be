"""What can go wrong with a message, and what the service does about it."""


class MessagingError(Exception):
    """Base of every error raised by app.kafka."""


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
    """The broker refused this message for good: too large for its topic, or not allowed there."""


class UnknownTopic(SendError):
    """The topic does not exist. `app topics create` makes the service's topics."""


class BrokerUnavailable(SendError):
    """No broker took the message within the deadline; it may or may not have been written."""

    retriable = True
