"""The most expensive lines of a process, by processor time.

A signal comes after each millisecond of processor time (or each tick of the kernel's, if that is longer).
It counts for the line of the service that is being executed, with all that libraries do on its behalf.
Where no line of the service is on the stack, it counts for the library.
"""

import json
import linecache
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import greenlet

INTERVAL_SECONDS = 0.001
SHOWN = 10
SITE = f"{os.sep}site-packages{os.sep}"

Place = tuple[str, int]


@contextmanager
def sampled(into: Path, service: Path) -> Iterator[None]:
    """Sample this process during the block; then write the number of samples of each line.

    `service` is the folder whose files are the service's. SIGUSR1 makes the count begin anew.
    """
    spent: Counter[Place] = Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        spent[place_of(frame, str(service))] += 1

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, lambda *_: spent.clear())
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        found: Counter[str] = Counter()
        for place, samples in spent.items():
            found[described(place, service)] += samples
        into.write_text(json.dumps(found))


def place_of(frame: FrameType | None, service: str) -> Place:
    """Return the innermost line of the service; without one, the outermost library."""
    outermost = "asyncio"
    for each in stack(frame):
        file = each.f_code.co_filename
        if file.startswith(service) and SITE not in file:
            return file, each.f_lineno or each.f_code.co_firstlineno
        if SITE in file:
            outermost = file.partition(SITE)[2].partition(os.sep)[0]
    return outermost, 0


def described(place: Place, service: Path) -> str:
    file, line = place
    if not line:
        return file
    return f"{Path(file).relative_to(service)}:{line} {linecache.getline(file, line).strip()}"


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames from the innermost on, through the greenlets that SQLAlchemy uses."""
    current = greenlet.getcurrent()
    while True:
        while frame is not None:
            yield frame
            frame = frame.f_back
        if current.parent is None:
            return
        current = current.parent
        frame = current.gr_frame


def most_expensive(found: dict[str, int], micros: float) -> list[tuple[str, float, float]]:
    """Return the lines with the most samples: their parts of `micros`, and their shares of all."""
    total = sum(found.values())
    shares = {place: samples / total for place, samples in found.items()}
    return [(place, micros * share, share) for place, share in Counter(shares).most_common(SHOWN)]
