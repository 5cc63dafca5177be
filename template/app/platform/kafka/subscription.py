"""Subscriptions: the events that a consumer handles, and its policies for failures."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from app.platform.backoff import Backoff
from app.platform.events.event import BaseEvent, EventRegistry, Tombstone

# It takes the event (a list of events in a batch subscription), then the unit of work.
Handler = Callable[..., Awaitable[None]]

DEFAULT_BATCH_SIZE = 500
# Bulk handlers spend so little time on an event that a transaction's own cost (two statements, a
# commit, the offsets) still shows at 500 events; at this size it hardly does.
DEFAULT_BULK_BATCH_SIZE = 2_000

CONSUMER_PATTERN = re.compile(r"^[a-z0-9][a-z0-9-]*$")


@dataclass(frozen=True)
class RetryPolicy:
    """A retry policy: the number and the timing of attempts before the dead letter topic.

    `attempts` includes the first one. Waits grow from `initial` by `multiplier` up to `maximum`
    seconds, each reduced by a random share of up to `jitter`. Exceptions in `permanent` are not
    retried. After the last attempt in place, the message gets one more in each delay topic of
    `retry_after`, and then goes to the dead letter topic.
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
            raise ValueError("attempts includes the first one: use at least 1")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter is out of range: use a share between 0 and 1")
        if not (0 <= self.initial <= self.maximum and 1 <= self.multiplier <= 1000):
            raise ValueError(
                "the waits do not grow: use 0 <= initial <= maximum, 1 <= multiplier <= 1000"
            )
        if any(delay <= timedelta(0) or delay % timedelta(seconds=1) for delay in self.retry_after):
            raise ValueError(
                "a delay in retry_after is wrong: use a whole number of seconds, at least 1"
            )
        if len(set(self.retry_after)) < len(self.retry_after):
            # They would share a topic, so that a message could not tell its stage.
            raise ValueError("a delay in retry_after is repeated: use each once")

    def backoff(self) -> Backoff:
        """Return the waits between attempts in place, for one message."""
        return Backoff(self.initial, self.maximum, self.multiplier, self.jitter)


@dataclass(frozen=True)
class OverloadPolicy:
    """An overload policy: the share of failures at which a subscription pauses.

    The circuit breaker opens when at least `threshold` of the last `window` messages failed for
    good. Then one message at a time is tried, with waits from `probe_initial` to `probe_maximum`
    seconds, until a success closes the breaker. After `probes` failures a probed message becomes a
    dead letter, so that one bad message does not block the others for ever.
    """

    window: int = 20
    threshold: float = 0.5
    probe_initial: float = 1.0
    probe_maximum: float = 60.0
    probes: int = 10

    def __post_init__(self) -> None:
        if self.window < 1 or self.probes < 1:
            raise ValueError("window or probes is out of range: use at least 1")
        if not 0 < self.threshold <= 1:
            raise ValueError("threshold is out of range: use a share above 0, at most 1")
        if not 0 <= self.probe_initial <= self.probe_maximum:
            raise ValueError("the waits do not grow: use 0 <= probe_initial <= probe_maximum")


@dataclass(frozen=True)
class Subscription:
    """A consumer: its name, the events that it handles, and its policies.

    `name` is part of the consumer group and of the failure topics. A new name is a new consumer, which
    starts from the beginning; `app dlq replay --to` gives it the failed messages of the old one.
    `concurrency` is the number of lanes, which handle different keys concurrently. With `batch`, a
    handler takes `list[Event]` instead of one event. `batch_size` is the largest number of messages in
    a fetch: by default 500, and 2,000 with `batch`. Handlers in `tombstones` take the `Tombstone`s of
    an event's topic, which are skipped otherwise.
    """

    name: str
    handlers: Mapping[type[BaseEvent], Handler]
    concurrency: int = 1
    batch: bool = False
    batch_size: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    overload: OverloadPolicy = field(default_factory=OverloadPolicy)
    tombstones: Mapping[type[BaseEvent], Handler] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not CONSUMER_PATTERN.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a consumer name: use a-z, 0-9 and '-'")
        if not (self.handlers or self.tombstones):
            raise ValueError(f"the subscription {self.name} handles no event: add a handler")
        if self.concurrency < 1 or self.max_batch_size < 1:
            raise ValueError(
                f"{self.name}: concurrency or batch_size is out of range: use at least 1"
            )

    @property
    def max_batch_size(self) -> int:
        if self.batch_size is not None:
            return self.batch_size
        return DEFAULT_BULK_BATCH_SIZE if self.batch else DEFAULT_BATCH_SIZE

    def handler(self, event: BaseEvent | Tombstone[Any]) -> Handler:
        if isinstance(event, Tombstone):
            return self.tombstones[event.model]
        return self.handlers[type(event)]

    def topics(self, registry: EventRegistry) -> list[str]:
        """Return the topics of its events, without its failure topics."""
        models = [*self.handlers, *self.tombstones]
        return list(dict.fromkeys(registry.topic(model) for model in models))


def check_names(subscriptions: Iterable[Subscription]) -> None:
    """Raise ValueError if two subscriptions have the same name."""
    taken: set[str] = set()
    for subscription in subscriptions:
        if subscription.name in taken:
            raise ValueError(
                f"two subscriptions are named {subscription.name}, so each would get only a part of the"
                " messages: rename one of them"
            )
        taken.add(subscription.name)
