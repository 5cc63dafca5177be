"""Subscriptions: which consumer handles which events, and what happens when it fails."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from app.platform.database.errors import error_message
from app.platform.events.event import BaseEvent, EventRegistry

# A handler takes the event first (a list of them in a batch subscription), then the unit of work.
Handler = Callable[..., Awaitable[None]]

BATCH_SIZE = 500
# A handler of many spends so little on each that a transaction's own cost (two statements, a commit,
# the offsets) still shows at 500; beyond this it hardly does.
BULK_SIZE = 2_000

CONSUMER_PATTERN = re.compile(r"^[a-z0-9][a-z0-9-]*$")


@dataclass(frozen=True)
class RetryPolicy:
    """A retry policy: how often and how fast a failing handler is tried again in place.

    `attempts` counts the first try. Waits grow from `initial` by `multiplier` up to `maximum`
    seconds, each shortened by a random share of up to `jitter`. Exceptions in `permanent` are
    not tried again. After the last attempt the message takes the delay topics of `retry_after`,
    one after the other, one attempt each, and then goes to the dead letter topic.
    """

    attempts: int = 3
    initial: float = 0.1
    multiplier: float = 4.0
    maximum: float = 5.0
    jitter: float = 0.5
    permanent: tuple[type[Exception], ...] = ()
    retry_after: Sequence[timedelta] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("attempts counts the first try, so it is at least 1")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter is a share between 0 and 1")
        if not (0 <= self.initial <= self.maximum and 1 <= self.multiplier <= 1000):
            raise ValueError(
                "the waits must grow: 0 <= initial <= maximum, 1 <= multiplier <= 1000"
            )
        if any(delay <= timedelta(0) or delay % timedelta(seconds=1) for delay in self.retry_after):
            raise ValueError("a delay in retry_after is a whole number of seconds, at least 1")
        if len(set(self.retry_after)) < len(self.retry_after):
            # They would share a topic, and a message there would not know which one it is at.
            raise ValueError("each delay in retry_after is there once")


@dataclass(frozen=True)
class OverloadPolicy:
    """An overload policy: when a subscription pauses because most messages fail.

    The subscription opens its breaker when at least `threshold` of the last `window` messages
    failed for good. It then tries one message at a time, after `probe_initial` to `probe_maximum`
    seconds, and closes again at the first success. A message that failed `probes` times as a
    probe is dead-lettered, so that one bad message does not hold the others for ever.
    """

    window: int = 20
    threshold: float = 0.5
    probe_initial: float = 1.0
    probe_maximum: float = 60.0
    probes: int = 10

    def __post_init__(self) -> None:
        if self.window < 1 or self.probes < 1:
            raise ValueError("window and probes are at least 1")
        if not 0 < self.threshold <= 1:
            raise ValueError("threshold is a share above 0, at most 1")
        if not 0 <= self.probe_initial <= self.probe_maximum:
            raise ValueError("the waits must grow: 0 <= probe_initial <= probe_maximum")


@dataclass(frozen=True)
class Subscription:
    """One consumer: a name, the events it handles, and its policies.

    `name` is part of the consumer group and of the dead letter topics: renaming it starts a new
    consumer from the beginning, which `app dlq replay --to` hands what the old one left behind.
    `concurrency` is the number of lanes that handle different keys side by side. With `batch`, a handler takes `list[Event]` instead of one event. `batch_size` is
    how many messages are fetched at once, at most; by default 500, and 2,000 with `batch`.
    """

    name: str
    handlers: Mapping[type[BaseEvent], Handler]
    concurrency: int = 1
    batch: bool = False
    batch_size: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    overload: OverloadPolicy = field(default_factory=OverloadPolicy)

    def __post_init__(self) -> None:
        if not CONSUMER_PATTERN.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no consumer name: use a-z, 0-9 and '-'")
        if not self.handlers:
            raise ValueError(f"the subscription {self.name} handles no event")
        if self.concurrency < 1 or self.largest_batch < 1:
            raise ValueError(f"{self.name}: concurrency and batch_size are at least 1")

    @property
    def largest_batch(self) -> int:
        if self.batch_size is not None:
            return self.batch_size
        return BULK_SIZE if self.batch else BATCH_SIZE

    def handler(self, event: BaseEvent) -> Handler:
        return self.handlers[type(event)]

    def topics(self, registry: EventRegistry) -> list[str]:
        """The topics of its events, without those for retries and dead letters."""
        return [registry.topic(model) for model in self.handlers]


def check_names(subscriptions: Iterable[Subscription]) -> None:
    """Raise ValueError when two subscriptions have one name."""
    taken: set[str] = set()
    for subscription in subscriptions:
        if subscription.name in taken:
            raise ValueError(
                f"two subscriptions are named {subscription.name}: as one consumer group, each would"
                " get only a part of its messages; give one of them another name"
            )
        taken.add(subscription.name)


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as fields of a log line."""
    return {"error_type": type(error).__name__, "error": error_message(error)[:1000]}
