"""The story of one request: what happened on its behalf, in order of time, as a picture and a list."""

import asyncio
from collections.abc import Sequence
from heapq import nlargest
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform import story
from app.platform.console.pages import console_of
from app.platform.http.browser import Fields
from app.platform.story import Step

LOG = Path(".dev/app.log")
NEWEST = 10_000  # messages in which the story is looked for; `app trace` reads all
SHOWN = 500
WIDTH, ROW, MARGIN = 800, 22, 10


class Mark(NamedTuple):
    """A step in the picture: `x` is its time, `y` its row; `cause` is the row of what caused it."""

    step: Step
    x: float
    y: int
    cause: int | None


async def show(request: Request) -> Response:
    console, given = console_of(request), Fields.of(request.query_params, "id")
    steps: list[Step] = []
    has_older = False
    if id := given.get("id", "").strip():
        steps, has_older = await story.newest(console.context, console.database, id, NEWEST)
        steps += await asyncio.to_thread(lambda: list(story.logged(LOG, id)))
        steps = sorted(nlargest(SHOWN, steps, key=_time), key=_time)
    return console.render(
        request,
        "story",
        "Story",
        given=given,
        marks=arrange(steps),
        seconds=_time(steps[-1]) - _time(steps[0]) if steps else 0.0,
        has_older=has_older,
        newest=NEWEST,
        height=ROW * len(steps) + MARGIN,
    )


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
