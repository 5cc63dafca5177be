"""Replaying and discarding from the console, as jobs."""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

from app.platform.console.jobs import Job
from app.platform.console.pages import Console
from app.platform.dead_letters import sending
from app.platform.dead_letters.outcomes import Outcome
from app.platform.kafka.dead_letters import DeadLetter

# As long as `app dlq replay --wait` waits by default.
WAIT_SECONDS = 60.0
_MOST_LINES = 100


class Action(StrEnum):
    """An action on dead letters. Its value is the command's name below `app dlq`."""

    REPLAY = "replay"
    DISCARD = "discard"

    @property
    def done(self) -> str:
        """The state of a letter after it."""
        return {"replay": "sent", "discard": "discarded"}[self]


async def act(
    console: Console,
    job: Job,
    action: Action,
    letters: Sequence[DeadLetter],
    to: str | None,
    missing: int,
) -> None:
    """Do the action as `app dlq` does, with its progress in `job`. A replay's outcome is awaited.

    `missing` letters of the page are not among `letters`, because something happened to them meanwhile.
    """
    progress = _JobProgress(letters, job, action, missing)
    if action is Action.DISCARD:
        await sending.discard(console.context, progress)
    else:
        await sending.replay(console.context, console.database, progress, to, max_wait=WAIT_SECONDS)


class _JobProgress(sending.Progress):
    """Progress that the page of a job shows."""

    def __init__(
        self, letters: Sequence[DeadLetter], job: Job, action: Action, missing: int
    ) -> None:
        super().__init__(letters)
        self._job, self._done, self._missing = job, action.done, missing
        self._show()

    def on_sent(self, letter: DeadLetter) -> None:
        self._show()

    def on_skipped(self, letter: DeadLetter, reason: str) -> None:
        self._show()

    def report(self, outcome: Outcome) -> None:
        super().report(outcome)
        self._show()

    def _show(self) -> None:
        self._job.progress(len(self.sent) + len(self.skipped), len(self.letters))
        self._job.lines = self._lines()

    def _lines(self) -> list[str]:
        lines = [f"{self._done} {len(self.sent)} of {len(self.letters)}"]
        if self._missing:
            lines.append(
                f"{self._missing} of the page left out: since then they were applied, discarded, or failed"
                " again"
            )
        counts = Counter(letter.consumer for letter in self.sent)
        lines += [f"{name or 'no consumer'}: {n}" for name, n in sorted(counts.items())]
        skipped = [f"skipped {letter.id}: {reason}" for letter, reason in self.skipped]
        lines += skipped[:_MOST_LINES]
        if len(skipped) > _MOST_LINES:
            lines.append(f"and {len(skipped) - _MOST_LINES} others skipped")
        if (outcome := self.outcome) is not None:
            lines.append(
                f"applied {outcome.applied}, failed again {outcome.failed}, pending {outcome.pending}"
            )
        return lines
