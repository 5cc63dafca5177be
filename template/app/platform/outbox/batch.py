"""A batch of the outbox: the order of its sends, and the outcome of each row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.platform.kafka.errors import NotSent, SendError, TopicUnavailable
from app.platform.kafka.producer import Outcome
from app.platform.outbox.model import OrderKey
from app.platform.outbox.transaction import PendingRow


class Unsendable(SendError):
    """The client itself failed at this message, for an unforeseen reason."""


@dataclass
class Batch:
    """A batch of outbox rows, sent in waves.

    A wave holds the next rows of each key that go to one topic. Kafka keeps the order of these;
    between topics, only an acknowledgement tells that the earlier event came first. After a failure
    nothing more is sent of that key. Rows that failed before go last.
    """

    rows: Sequence[PendingRow]
    max_attempts: int
    sent: list[PendingRow] = field(default_factory=list)
    attempted: list[PendingRow] = field(default_factory=list)
    unsendable: dict[int, str] = field(default_factory=dict)
    refusing: set[str] = field(default_factory=set)
    unanswered: dict[str, SendError] = field(default_factory=dict)
    _left: list[PendingRow] = field(init=False)
    _stopped: set[OrderKey] = field(default_factory=set)
    _singly: bool = False

    def __post_init__(self) -> None:
        self._left = list(self.rows)

    def next_wave(self) -> list[PendingRow]:
        """Return the rows to send next; none at the end of the batch, or if no broker answers."""
        if self.unanswered:
            return []
        left = self._left
        if self._stopped:
            left = [row for row in left if row.order_key not in self._stopped]
        failed_before = {row.order_key for row in left if row.attempts}
        first = [r for r in left if r.order_key not in failed_before] if failed_before else left
        wave = _one_topic_per_key(first or left)
        if self._singly:
            wave = wave[:1]
        if len(wave) == len(left):
            self._left = []
        else:
            taken = {row.id for row in wave}
            self._left = [row for row in left if row.id not in taken]
        return wave

    def send_singly(self, wave: Sequence[PendingRow]) -> None:
        """Send each row alone from now on, to find the one that made `wave` fail as a whole."""
        self._singly = True
        self._left = sorted([*wave, *self._left], key=lambda row: row.id)

    @property
    def made_progress(self) -> bool:
        """Whether any row leaves the outbox."""
        return bool(self.sent or self.unsendable)

    @property
    def outage(self) -> SendError | None:
        """The reason why no broker took anything; None if only some topics had no answer."""
        return None if self.sent else next(iter(self.unanswered.values()), None)

    @property
    def failing_topics(self) -> set[str]:
        """The topics that took nothing, while the broker took messages for others."""
        return self.refusing if self.outage else {*self.refusing, *self.unanswered}

    def record(self, wave: Sequence[PendingRow], outcomes: Sequence[Outcome]) -> None:
        """Record the outcome of each send of `wave`."""
        for row, outcome in zip(wave, outcomes, strict=True):
            if outcome is None:
                self.sent.append(row)
            elif row.order_key not in self._stopped:
                self._stopped.add(row.order_key)
                self._record_failure(row, outcome)

    def _record_failure(self, row: PendingRow, error: SendError) -> None:
        topic = row.message.topic
        if isinstance(error, TopicUnavailable):
            self.refusing.add(topic)
        elif isinstance(error, NotSent):
            return  # it goes with the next batch
        elif error.retriable:
            self.unanswered[topic] = error
        elif isinstance(error, Unsendable) and row.attempts + 1 < self.max_attempts:
            self.attempted.append(row)
        else:
            self.unsendable[row.id] = f"{type(error).__name__}: {error}"


def _one_topic_per_key(rows: Iterable[PendingRow]) -> list[PendingRow]:
    topics: dict[OrderKey, str] = {}
    ended: set[OrderKey] = set()
    wave = []
    for row in rows:
        key = row.order_key
        if key in ended:
            continue
        if topics.setdefault(key, row.message.topic) == row.message.topic:
            wave.append(row)
        else:
            ended.add(key)
    return wave
