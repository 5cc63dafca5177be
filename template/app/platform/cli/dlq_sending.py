"""Sending for `app dlq replay` and `app dlq discard`."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from app.platform import telemetry
from app.platform.cli.base import on_database
from app.platform.dead_letters import sending
from app.platform.kafka.dead_letters import DeadLetter
from app.platform.kafka.errors import SendError
from app.platform.runtime import Context
from app.platform.terminal import say


def replay(
    context: Context,
    letters: Sequence[DeadLetter],
    to: str | None,
    rate: float | None,
    max_wait: float | None,
) -> None:
    """Send the letters back to their consumer, or `to` another; for up to `max_wait` s, await it.

    Exits with code 1 unless all of them are applied before the wait ends.
    """
    progress = _Printed(letters, "sent")
    with telemetry.for_command(), _one_line_errors():
        asyncio.run(
            on_database(
                lambda database: sending.replay(context, database, progress, to, rate, max_wait)
            )
        )
    if (outcome := progress.outcome) is None:
        return
    say(str(outcome))
    if outcome.applied < len(letters):
        raise typer.Exit(1)


def discard(context: Context, letters: Sequence[DeadLetter]) -> None:
    """Send the tombstones of the letters."""
    with telemetry.for_command(), _one_line_errors():
        asyncio.run(sending.discard(context, _Printed(letters, "discarded")))


class _Printed(sending.Progress):
    """Progress that is printed. `done` is the state of the letters after the operation."""

    def __init__(self, letters: Sequence[DeadLetter], done: str) -> None:
        super().__init__(letters)
        self._done = done

    def on_skipped(self, letter: DeadLetter, reason: str) -> None:
        say(f"skipped {letter.id}: {reason}", err=True)

    def on_sending_ended(self) -> None:
        for line in self.summary(self._done):
            say(line)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted", err=True)
        raise typer.Exit(130) from None
    except SendError as error:
        say(f"stopped: {error}", err=True)
        raise typer.Exit(1) from None
