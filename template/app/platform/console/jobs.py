"""Actions that take a while: they run in the background, and have a page with their progress."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

import structlog

log = structlog.get_logger(__name__)

MOST_JOBS = 50


@dataclass
class Job:
    """An action that was begun. `done` and `expected` count what it works on; `lines` tell its outcome.

    `refresh` brings them up to date, for an action that does not do so by itself.
    """

    id: int
    title: str
    actor: str
    started_at: datetime
    done: int = 0
    expected: int = 0
    lines: list[str] = field(default_factory=list)
    state: str = "running"
    refresh: Callable[[], None] = lambda: None

    def progress(self, done: int, expected: int) -> None:
        self.done, self.expected = done, expected

    @property
    def is_running(self) -> bool:
        return self.state == "running"


class Jobs:
    """The last jobs of this process. Those that still run end with the process."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids = count(1)

    def start(self, title: str, actor: str, work: Callable[[Job], Awaitable[None]]) -> Job:
        """Run `work` in the background, and log its start and end with `actor`."""
        job = Job(next(self._ids), title, actor, datetime.now(UTC))
        self._jobs[job.id] = job
        while len(self._jobs) > MOST_JOBS:
            self._jobs.popitem(last=False)
        task = asyncio.create_task(_run(job, work), name=f"console-job-{job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def find(self, id: int) -> Job | None:
        return self._jobs.get(id)

    def latest(self) -> list[Job]:
        return list(reversed(self._jobs.values()))

    async def close(self) -> None:
        """Cancel what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _run(job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
    log.info("console action started", action=job.title, actor=job.actor)
    try:
        await work(job)
    except asyncio.CancelledError:
        job.state = "interrupted"
        job.refresh()
        log.warning("console action interrupted", action=job.title, actor=job.actor)
        raise
    except Exception as error:  # shown on the job's page
        job.state = "failed"
        job.refresh()
        job.lines.append(str(error) or type(error).__name__)
        log.exception("console action failed", action=job.title, actor=job.actor)
    else:
        job.state = "finished"
        job.refresh()
        log.info("console action finished", action=job.title, actor=job.actor, result=job.lines)
