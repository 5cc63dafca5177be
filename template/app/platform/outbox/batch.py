"""A batch of the outbox: what goes out together, and what becomes of each row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.platform.kafka.errors import NotSent, SendError, TopicUnavailable
from app.platform.kafka.producer import Outcome
from app.platform.outbox.model import OrderKey
from app.platform.outbox.store import Pending


class Unsendable(SendError):
    """The client itself failed at this message, for a reason that nobody foresaw."""


@dataclass
class Batch:
    """The rows of a batch in order, sent in waves.

    A wave holds of each key the next rows that go to one topic: these keep their order in Kafka by
    themselves, while between topics only an acknowledgement says what came first. After a failure
    nothing of that key is sent any more. Rows that failed before go last.
    """

    rows: Sequence[Pending]
    max_attempts: int
    sent: list[Pending] = field(default_factory=list)
    attempted: list[Pending] = field(default_factory=list)
    hopeless: dict[int, str] = field(default_factory=dict)
    refusing: set[str] = field(default_factory=set)
    unanswered: dict[str, SendError] = field(default_factory=dict)
    _left: list[Pending] = field(init=False)
    _stopped: set[OrderKey] = field(default_factory=set)
    _singly: bool = False

    def __post_init__(self) -> None:
        self._left = list(self.rows)

    def next_wave(self) -> list[Pending]:
        """The rows to send next; none when the batch is through, or no broker answers."""
        if self.unanswered:
            return []
        left = self._left
        if self._stopped:
            left = [row for row in left if row.order_key not in self._stopped]
        doubtful = {row.order_key for row in left if row.attempts}
        first = [row for row in left if row.order_key not in doubtful] if doubtful else left
        wave = _one_topic_a_key(first or left)
        if self._singly:
            wave = wave[:1]
        if len(wave) == len(left):
            self._left = []
        else:
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

    @property
    def outage(self) -> SendError | None:
        """Why no broker took anything; None where only some topics had no answer."""
        return None if self.sent else next(iter(self.unanswered.values()), None)

    @property
    def topics_in_trouble(self) -> set[str]:
        """The topics that took nothing, while the broker took what others were sent."""
        return self.refusing if self.outage else {*self.refusing, *self.unanswered}

    def settle(self, wave: Sequence[Pending], outcomes: Sequence[Outcome]) -> None:
        """Take in how the sends of `wave` ended."""
        for row, outcome in zip(wave, outcomes, strict=True):
            if outcome is None:
                self.sent.append(row)
            elif row.order_key not in self._stopped:
                self._stopped.add(row.order_key)
                self._failed(row, outcome)

    def _failed(self, row: Pending, error: SendError) -> None:
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
