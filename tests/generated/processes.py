"""Commands of a rendered service that run beside the tests."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from tests.generated.conftest import Service
from tests.shell import environment

STOP_SECONDS = 60


@contextmanager
def running(
    service: Service, *command: str, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator["subprocess.Popen[bytes]"]:
    """A command of the service for the length of the block, ended by Ctrl-C with exit code 0.

    The block may kill it, too. Its output is in a file of its name.
    """
    with (service.path / f"{command[0]}.log").open("wb") as output:
        process = subprocess.Popen(
            ("uv", "run", "--no-sync", "app", *command),
            cwd=service.path,
            env={**environment("DATABASE_URL|KAFKA_|OTEL_"), **service.settings, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        killed = process.returncode == -signal.SIGKILL
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(STOP_SECONDS)
    assert killed or code == 0, f"{command}: {code}\n{log_of(service, command[0])}"


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill it with its children, even if it is stopped."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)


def log_of(service: Service, command: str) -> str:
    return (service.path / f"{command}.log").read_text(errors="replace")
