"""The rules of the business, without I/O. What breaks one is a DomainError."""


class DomainError(Exception):
    """A rule forbids it in the present state. The message says which, for the caller."""


class EventOutOfPlace(Exception):
    """The stored history is broken: this event cannot follow what came before it."""
