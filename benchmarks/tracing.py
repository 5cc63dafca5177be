"""Traces by OpenTelemetry: off, and on with one request or message in a hundred sampled.

Each side is a process of the service as its commands start it, on one real Kafka and one real
PostgreSQL. They take turns.

- *relay*: `app relay`, from the commit that makes rows visible, and notifies it, to an empty outbox.
- *group commit*, *batch handler*: a process like `app worker` with one consumer, one lane.
- *POST /orders*: `app api` with the module outbox, from eight clients, each at once after its last
  answer.
- *off*: no variable asks for traces. *1 % sampled*: `OTEL_TRACES_SAMPLER=parentbased_traceidratio`
  with 0.01, and spans go by OTLP to a process that reads and drops them. One message in a hundred has
  a sampled `traceparent`, on every side.
- *last release*: off, by the code of the newest version of the template, or of `--before`.
"""

import asyncio
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from consume import Bench, worker_processes
from harness import APP, Side, Stage, Watch, run
from orders import VARIANTS, answers, generated, process
from outbox import SEED_ROWS, relay_processes
from results import Area, Comparison, Figures

from app.platform.database.engine import Base
from app.platform.dev.process import free_port
from app.platform.kafka.codec import TRACEPARENT, Message

SINK = Path(__file__).with_name("sink.py")
SAMPLED_OF = 100  # one in so many
SENT_SECONDS = 30
SAMPLED = "1 % sampled"
WORK = ["relay", "group commit", "batch handler", "POST /orders"]

# Rows as a service writes them whose sampler takes one request in a hundred.
TRACED_ROWS = f"""
    UPDATE outbox SET traceparent = '00-' || lpad(to_hex(id), 32, '0') || '-' ||
        lpad(to_hex(id), 16, '0') || CASE WHEN id % {SAMPLED_OF} = 0 THEN '-01' ELSE '-00' END
"""


def traced(message: Message, number: int) -> Message:
    flags = "00" if number % SAMPLED_OF else "01"
    traceparent = f"00-{number + 1:032x}-{number + 1:016x}-{flags}".encode()
    others = [header for header in message.headers if header[0] != TRACEPARENT]
    return message._replace(headers=(*others, (TRACEPARENT, traceparent)))


class How(NamedTuple):
    """The code and the settings of a side."""

    name: str
    rendering: str
    settings: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        path = {"PYTHONPATH": str(VARIANTS / self.rendering)}
        return {"LOG_LEVEL": "WARNING", "LOG_FORMAT": "json", **path, **self.settings}


class Sink(NamedTuple):
    """A path of the process that takes the spans."""

    address: str

    def settings(self) -> dict[str, str]:
        return {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.address,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(1 / SAMPLED_OF),
        }

    async def posted(self) -> int:
        def ask() -> int:
            with urllib.request.urlopen(self.address, timeout=10) as answer:
                return int(answer.read())

        return await asyncio.to_thread(ask)


@asynccontextmanager
async def receiving() -> AsyncIterator[str]:
    port = free_port()
    started = psutil.Popen([sys.executable, str(SINK), str(port)])
    try:
        while not await answers(port):
            assert started.poll() is None, "the sink has ended"
            await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait()


Measure = Callable[[], Awaitable[Figures]]


def checked(measure: Measure, sink: Sink, how: How) -> Measure:
    """Fail unless the processes of a side send spans, and only if they are asked to."""

    async def measure_and_check() -> Figures:
        before = await sink.posted()
        measured = await measure()  # its processes have ended, and so have sent what they had
        sends = await sink.posted() > before
        assert sends == bool(how.settings), f"{how.name}: it sends spans: {sends}"
        return measured

    return measure_and_check


async def until_sampled(port: int, sink: Sink) -> None:
    """Send requests of a sampled trace until spans arrive."""
    before, deadline = await sink.posted(), time.monotonic() + SENT_SECONDS
    headers = {"traceparent": f"00-{1:032x}-{1:016x}-01"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/orders?user_id=1", headers=headers)
    while await sink.posted() == before:
        assert time.monotonic() < deadline, "no spans arrive"
        await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=10).read())
        await asyncio.sleep(0.2)


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    async with stage.database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    bench = Bench(stage)
    rows = max(SEED_ROWS, int(30_000 * scale) // SEED_ROWS * SEED_ROWS)
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(receiving())
        # The processes that serve requests run all the time, and may send their spans at any.
        sink, sink_of_api = Sink(f"{receiver}/worker"), Sink(f"{receiver}/api")
        ways = [How("last release", "before", {})] if (VARIANTS / "before").is_dir() else []
        ways += [How("off", "outbox", {}), How(SAMPLED, "outbox", sink.settings())]

        def of_relay(how: How) -> Measure:
            measure = relay_processes(1, TRACED_ROWS, **how.environment)
            return checked(lambda: measure(stage, rows), sink, how)

        def of_worker(how: How, name: str, messages: int) -> Measure:
            measure = worker_processes(1, name, traced, **how.environment)
            count = max(2 * SAMPLED_OF, int(messages * scale))
            return checked(lambda: measure(bench, count), sink, how)

        async def of_api(how: How) -> Measure:
            if how.settings:
                how = how._replace(settings=sink_of_api.settings())
            serving = process(stage, how.rendering, [*APP, "api"], **how.environment)
            api = await stack.enter_async_context(serving)
            await generated(api.port, 0.5)
            if how.settings:
                await until_sampled(api.port, sink_of_api)

            async def measure() -> Figures:
                watch = Watch(api)
                done = await generated(api.port, 3 * scale)
                return watch.figures(int(done["requests"]))._replace(rate=done["rate"])

            return measure

        yield [
            *(Side(f"relay, {how.name}", "rows/s", of_relay(how), 9) for how in ways),
            *(
                Side(f"{name}, {how.name}", "messages/s", of_worker(how, work, messages), 9)
                for name, work, messages in [
                    ("group commit", "quick", 10_000),
                    ("batch handler", "bulk", 30_000),
                ]
                for how in ways
            ),
            *[
                Side(f"POST /orders, {how.name}", "requests/s", await of_api(how), 30)
                for how in ways
            ],
        ]


COMPARISONS = [
    *(
        Comparison(f"{work}: off, beside the last release", f"{work}, off", f"{work}, last release")
        for work in WORK
    ),
    *(
        Comparison(
            f"{work}: {SAMPLED}, beside off", f"{work}, {SAMPLED}", f"{work}, off", ">= 0.95"
        )
        for work in WORK
    ),
]

if __name__ == "__main__":
    run(Area("tracing", "Tracing", __doc__ or "", COMPARISONS), plan, turns=3)
