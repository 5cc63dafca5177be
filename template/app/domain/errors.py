"""What the rules of the business refuse."""


class DomainError(Exception):
    """A rule forbids it in the present state. The message says which, for the caller."""
