"""The story of one request: what happened on its behalf, in order of time, as a picture and a list."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform import story
from app.platform.console.pages import Console, console_of
from app.platform.kafka import codec
from app.platform.kafka.admin import reading
from app.platform.kafka.codec import header
from app.platform.kafka.excerpts import read_newest
from app.platform.kafka.topics import failure_topic
from app.platform.story import Step

LOG = Path(".dev/app.log")
NEWEST = 10_000  # messages in which the story is looked for; `app trace` reads all
MAX_BYTES = 64_000_000
SHOWN = 500
WIDTH, ROW, MARGIN = 800, 22, 10


@dataclass(frozen=True)
class Mark:
    """A step in the picture: `x` is its time, `y` its row; `cause` is the row of what caused it."""

    step: Step
    x: float
    y: int
    cause: int | None

    @property
    def failure(self) -> str | None:
        """The failure that a dead letter or a parked event is; None for other steps."""
        if self._kind == "dlq":
            return f"failed in {self.step.consumer}: {self.step.error}"
        return self.step.error if self.step.source == "outbox" else None

    @property
    def attempt(self) -> str | None:
        """The later attempt that a message in a replay or delay topic is; None for other steps."""
        if self._kind == "replay":
            return f"replayed to {self.step.consumer}"
        if self._kind == "retry":
            return f"a later attempt of {self.step.consumer}, after: {self.step.error}"
        return None

    @property
    def _kind(self) -> str | None:
        found = failure_topic(self.step.topic or "") if self.step.consumer else None
        return None if found is None else found.kind


async def show(request: Request) -> Response:
    console, id = console_of(request), request.query_params.get("id", "").strip()
    steps, has_older = await _find(console, id) if id else ([], False)
    return console.render(
        request,
        "story.html.j2",
        id=id,
        marks=arrange(steps),
        seconds=(steps[-1].time - steps[0].time).total_seconds() if steps else 0.0,
        has_older=has_older,
        newest=NEWEST,
        height=ROW * len(steps) + MARGIN,
    )


async def _find(console: Console, id: str) -> tuple[list[Step], bool]:
    """Return the steps, oldest first, and whether older messages were left out."""
    context = console.context
    topics = {topic.name for topic in [*context.topics(), *context.foreign_topics()]}
    async with reading(context.kafka, sorted(topics)) as client:
        newest = await read_newest(client, NEWEST, MAX_BYTES)
    sent = [
        story.step_of(record)
        for record in newest.records
        if header(record.headers, codec.CORRELATION_ID) == id
    ]
    waiting = await story.unsent(console.database, id)
    logged = await asyncio.to_thread(lambda: list(story.logged(LOG, id)))
    steps = [*sent, *waiting, *logged]
    return sorted(nlargest(SHOWN, steps, key=_time), key=_time), newest.has_older


def _time(step: Step) -> float:
    return step.time.timestamp()


def arrange(steps: Sequence[Step]) -> list[Mark]:
    """Place the steps: to the right by time, down by order."""
    if not steps:
        return []
    began, span = _time(steps[0]), (_time(steps[-1]) - _time(steps[0])) or 1.0
    rows: dict[str, int] = {}
    marks = []
    for number, step in enumerate(steps):
        y = MARGIN + ROW * number
        x = MARGIN + (WIDTH - 2 * MARGIN) * (_time(step) - began) / span
        marks.append(Mark(step, round(x, 1), y, rows.get(step.causation_id or "")))
        if step.event_id is not None:
            rows.setdefault(step.event_id, y)
    return marks


ROUTES = [Route("/story", show)]
