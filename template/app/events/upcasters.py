"""Upcasters: pure functions from a payload of one major version to one of the next.

They stay for as long as a message or a stored copy of the old version may turn up: for ever.
"""

from app.kafka.event import Payload


def user_created_2(payload: Payload) -> Payload:
    """2.0.0 added `phone`, and nobody had been asked for it before."""
    return {**payload, "version": "2.0.0", "phone": None}
