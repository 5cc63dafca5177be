"""The start of `app api`, and the memory of each kind of process, beside a bare process.

Everything of the service is there: all modules, with projectors among the consumers of the worker.

- *start*: from the start of the process until `/health/ready` answers 200, in turns. Bytecode is kept,
  topics and tables exist.
- *bare process*: uvicorn, FastAPI, an engine of SQLAlchemy and a producer of aiokafka; it is ready when
  it is connected to the same PostgreSQL and Kafka (`benchmarks/bare.py`). It has one route.
- *memory*: the resident memory of `app api`, `app worker` and `app relay`, when all of them are ready,
  and after load: eight clients place orders for ten seconds (at a scale of one), and then all of
  them are in the read model.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from harness import APP, Running, Side, Stage, process, run, server_settings, until_ready
from orders import SIGN_UP, generated
from results import Area, Comparison, Figures

BARE = (sys.executable, str(Path(__file__).with_name("bare.py")))
ROLES = ["api", "worker", "relay"]
# An installed service has its bytecode.
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
POLL_SECONDS = 0.005

NAMES = "INSERT INTO customer_names SELECT id, username FROM users"
VIEWS = "SELECT count(*) FROM order_views"

READY, LOADED = "when ready", "after load"
PEER = "bare process"


async def start(stage: Stage, *command: str) -> Figures:
    """Return the seconds until a process is ready, and its processor time."""
    begun = time.perf_counter()
    async with process(stage, *command, **COMPILED) as started:
        while not await started.is_ready():
            await asyncio.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - begun
        return Figures(seconds, 1e6 * sum(started.process.cpu_times()[:2]))


@asynccontextmanager
async def all_roles(stage: Stage) -> AsyncIterator[Mapping[str, Running]]:
    async with AsyncExitStack() as stack:
        roles = {
            role: await stack.enter_async_context(process(stage, *APP, role, **COMPILED))
            for role in ROLES
        }
        await until_ready(*roles.values())
        yield roles


async def memory(stage: Stage, seconds: float) -> dict[str, float]:
    async with all_roles(stage) as roles:
        sizes = {f"app {role}, {READY}": resident(each) for role, each in roles.items()}
        before = await stage.connection.fetchval(VIEWS)
        placed = await generated(roles["api"].port, seconds)
        while await stage.connection.fetchval(VIEWS) < before + placed["requests"]:
            await asyncio.sleep(0.1)
        return sizes | {f"app {role}, {LOADED}": resident(each) for role, each in roles.items()}


async def memory_of_bare(stage: Stage) -> float:
    async with process(stage, *BARE, **COMPILED) as started:
        await until_ready(started)
        return resident(started)


def resident(running: Running) -> float:
    """Return the resident memory in MiB."""
    return float(running.process.memory_info().rss) / 2**20


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[Sequence[Side]]:
    create = (*APP, "topics", "create")
    environment = server_settings(stage, COMPILED)
    await asyncio.to_thread(
        subprocess.run, create, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    await stage.connection.execute(SIGN_UP)
    await stage.connection.execute(NAMES)
    for command in ([*APP, "api"], BARE):  # the first time compiles
        await start(stage, *command)
    seconds = max(1.0, 10 * scale)
    yield [
        Side("app api, start", "s", lambda: start(stage, *APP, "api")),
        Side(f"{PEER}, start", "s", lambda: start(stage, *BARE)),
        Side("memory", "MiB", lambda: memory(stage, seconds), 3),
        Side(f"{PEER}, memory", "MiB", lambda: memory_of_bare(stage), 3),
    ]


COMPARISONS = [
    Comparison(
        "start of app api, beside a bare process", "app api, start", f"{PEER}, start", "<= 1.5"
    ),
    *(
        Comparison(
            f"memory of app {role} when ready, beside a bare process",
            f"memory, app {role}, {READY}",
            f"{PEER}, memory",
        )
        for role in ROLES
    ),
    *(
        Comparison(
            f"memory of app {role} after load, beside when ready",
            f"memory, app {role}, {LOADED}",
            f"memory, app {role}, {READY}",
        )
        for role in ROLES
    ),
]

if __name__ == "__main__":
    run(Area("start", "Start and memory", __doc__ or "", COMPARISONS), plan, turns=3)
