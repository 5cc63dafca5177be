"""What of a batch may go out together, and what becomes of each row after its send. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.kafka.errors import SendError, UnknownTopic
from app.kafka.producer import Outcome
from app.outbox.buckets import OrderKey
from app.outbox.store import Pending


class Unsendable(SendError):
    """The client itself failed at this message, for a reason that nobody foresaw."""


@dataclass
class Batch:
    """The rows of a batch in order, sent in waves.

    A wave holds of each key the next rows that go to one topic: these keep their order in Kafka by
    themselves, while between topics only an acknowledgement says what came first. After a failure
    nothing of that key is sent any more. Rows that failed before go last, because finding out about
    a topic that is not there takes seconds.
    """

    rows: Sequence[Pending]
    max_attempts: int
    sent: list[Pending] = field(default_factory=list)
    attempted: list[Pending] = field(default_factory=list)
    hopeless: dict[int, str] = field(default_factory=dict)
    missing_topics: set[str] = field(default_factory=set)
    outage: SendError | None = None
    _left: list[Pending] = field(init=False)
    _stopped: set[OrderKey] = field(default_factory=set)
    _singly: bool = False

    def __post_init__(self) -> None:
        self._left = list(self.rows)

    def next_wave(self) -> list[Pending]:
        """The rows to send next; none when the batch is through, or no broker answers."""
        if self.outage is not None:
            return []
        left = self._left
        if self._stopped:
            left = [row for row in left if row.order_key not in self._stopped]
        doubtful = {row.order_key for row in left if row.attempts}
        first = [row for row in left if row.order_key not in doubtful] if doubtful else left
        wave = _one_topic_a_key(first or left)
        if self._singly:
            wave = wave[:1]
        taken = {row.id for row in wave}
        self._left = [row for row in left if row.id not in taken]
        return wave

    def one_by_one(self, wave: Sequence[Pending]) -> None:
        """`wave` failed as a whole: from here on each row goes alone, to find out which it was."""
        self._singly = True
        self._left = sorted([*wave, *self._left], key=lambda row: row.id)

    @property
    def moved(self) -> bool:
        """Whether any row leaves the outbox."""
        return bool(self.sent or self.hopeless)

    def settle(self, wave: Sequence[Pending], outcomes: Sequence[Outcome]) -> None:
        """Take in how the sends of `wave` ended."""
        for row, outcome in zip(wave, outcomes, strict=True):
            if outcome is None:
                self.sent.append(row)
            elif row.order_key not in self._stopped:
                self._stopped.add(row.order_key)
                self._failed(row, outcome)

    def _failed(self, row: Pending, error: SendError) -> None:
        if isinstance(error, UnknownTopic):
            self.missing_topics.add(row.message.topic)
        if error.retriable:
            self.outage = error
        elif isinstance(error, UnknownTopic | Unsendable) and row.attempts + 1 < self.max_attempts:
            self.attempted.append(row)
        else:
            self.hopeless[row.id] = f"{type(error).__name__}: {error}"


def _one_topic_a_key(rows: Iterable[Pending]) -> list[Pending]:
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
