"""The processor time of commands, beside that of `python -c "import fastapi"`; and the start of `app dev`.

Each command is a whole process, in turns, and only what it computes counts, not its waiting for servers
(which this run starts). Bytecode is kept, as it is where a service is installed. *help* is of every
command and group, as `app --help` lists them, of which the slowest counts. *app dev* is the time from
its servers' being up, which `.dev/servers.json` tells, to its readiness; at a second start, when
nothing is to be migrated.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from harness import Side, Stage, run
from results import Area, Comparison

from app.platform.cli import COMMANDS
from app.platform.dev.process import free_port
from app.platform.dev.servers import ADDRESSES

APP = Path(sys.executable).with_name("app")
FLOOR = "import fastapi"
HELP: list[tuple[str, ...]] = [("--help",), *((name, "--help") for name in COMMANDS)]
WORKING: list[tuple[str, ...]] = [
    ("topics", "list"),
    ("topics", "check"),
    ("dlq", "list"),
    ("schemas", "check"),
]
DEV, ALLOWED = "app dev, from its servers to ready", "three seconds"
START_SECONDS, POLL_SECONDS = 120.0, 0.02


def main() -> None:
    run(Area("commands", "Commands", __doc__ or "", comparisons()), plan)


def comparisons() -> list[Comparison]:
    rows = [Comparison("help of any command, beside import fastapi", names(HELP), FLOOR, "<= 1")]
    rows += [
        Comparison(f"{name}, beside import fastapi", name, FLOOR, "<= 2") for name in names(WORKING)
    ]
    return [*rows, Comparison(f"{DEV}, of three seconds", DEV, ALLOWED, "<= 1")]


def names(commands: Sequence[Sequence[str]]) -> list[str]:
    return [" ".join(["app", *command]) for command in commands]


@asynccontextmanager
async def plan(stage: Stage, _scale: float) -> AsyncIterator[Sequence[Side]]:
    servers = {
        "DATABASE_URL": stage.servers.database_url,
        "KAFKA_BOOTSTRAP_SERVERS": stage.servers.kafka_bootstrap_servers,
    }
    for how in [("topics", "create"), ("--help",), *WORKING]:  # the first time compiles
        processor_seconds([APP, *how], servers)
    commands = dict(zip(names(HELP + WORKING), HELP + WORKING, strict=True))
    sides = [Side(FLOOR, "s", timed([sys.executable, "-c", FLOOR], servers))]
    sides += [Side(name, "s", timed([APP, *how], servers)) for name, how in commands.items()]
    sides += [
        Side(DEV, "s", lambda: asyncio.to_thread(seconds_to_ready)),
        Side(ALLOWED, "s", allowed),
    ]
    await asyncio.to_thread(seconds_to_ready)  # the first start migrates
    yield sides


def timed(
    command: Sequence[str | Path], environment: dict[str, str]
) -> Callable[[], Awaitable[float]]:
    return lambda: asyncio.to_thread(processor_seconds, command, environment)


def processor_seconds(command: Sequence[str | Path], environment: dict[str, str]) -> float:
    """The processor time of a whole process, which has to succeed."""
    settings = {**os.environ, **environment}
    settings.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed service has its bytecode
    process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    return usage.ru_utime + usage.ru_stime


def seconds_to_ready() -> float:
    """Start `app dev` in this folder, and stop it when it is ready."""
    own = {n: v for n, v in os.environ.items() if not n.startswith(("DATABASE_", "KAFKA_"))}
    port = free_port()
    with subprocess.Popen(
        [APP, "dev", "--port", str(port)], env={**own, "LOG_LEVEL": "ERROR"}
    ) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not is_ready(port):
                assert process.poll() is None, "app dev has ended"
                assert time.monotonic() < deadline, "app dev is not ready"
                time.sleep(POLL_SECONDS)
            return time.time() - ADDRESSES.stat().st_mtime
        finally:
            process.terminate()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2) as answer:
            return bool(json.load(answer))
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


async def allowed() -> float:
    return 3.0


if __name__ == "__main__":
    main()
