"""Stop signals of `app dev`."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from app.platform.http.server import STOP_SIGNALS


class StopRequested(KeyboardInterrupt):
    """A stop signal arrived while nothing handled it by itself."""


class StopSignals:
    """The handler of the stop signals. The first raises StopRequested; those after it are ignored.

    A signal often arrives twice: from the terminal, and from uv.
    """

    def __init__(self) -> None:
        self._react: Callable[[], object] = _raise_stop_requested

    def ignore(self) -> None:
        """Ignore signals from now on: stopping the servers takes seconds."""
        self._react = _do_nothing

    def call(self, react: Callable[[], object]) -> None:
        """Call `react` at a signal instead of raising StopRequested."""
        self._react = react

    @property
    def ignored(self) -> bool:
        return self._react is _do_nothing

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            _drop_output()
        react, self._react = self._react, _do_nothing
        react()


@contextmanager
def handling_stop_signals() -> Iterator[StopSignals]:
    """Handle stop signals by `StopSignals` for the length of the block.

    Signals that are ignored at its end stay so: the exit that follows has its code already.
    """
    signals = StopSignals()
    before = {number: signal.signal(number, signals) for number in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            # Not by `signals`: Python drops its own handlers shortly before its process ends.
            signal.signal(number, signal.SIG_IGN if signals.ignored else handler)


def _raise_stop_requested() -> None:
    raise StopRequested


def _do_nothing() -> None:
    return


def _drop_output() -> None:
    """Discard output: writing to a closed terminal would raise while the servers stop."""
    with Path(os.devnull).open("w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())
