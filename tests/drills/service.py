"""The processes of the rendered service, started and ended as an operator would."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from app.platform.dev.process import LOOPBACK, free_port

ROOT = Path(__file__).parents[1]
APP = str(Path(sys.executable).with_name("app"))
START_SECONDS = 40.0
POLL_SECONDS = 0.05


class ServiceFailed(Exception):
    """A process of the service did not do what it was started for. Ends with its log."""


class Process:
    """`app api` or `app worker` with a port and a log of its own."""

    def __init__(self, role: str, name: str, environment: Mapping[str, str], folder: Path) -> None:
        self.role = role
        self.name = name
        self.log = folder / f"{name}.log"
        self.port = free_port()
        self._command = [APP, role, "--port", str(self.port)]
        self._environment = {**os.environ, **environment}
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> "Process":
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    async def is_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait for `/health/ready` to say so. Raises ServiceFailed with what it said instead."""
        deadline = time.monotonic() + seconds
        while (said := await self.readiness())[0] != 200:
            if not self.running:
                raise ServiceFailed(f"{self.name} ended\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"{self.name} not ready within {seconds:g} s: {said[1]}\n{self.log_tail()}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `/health/ready`; status 0 while nothing answers."""
        return await self._health("ready")

    async def liveness(self) -> tuple[int, dict[str, Any]]:
        return await self._health("live")

    async def _health(self, which: str) -> tuple[int, dict[str, Any]]:
        try:
            async with httpx.AsyncClient(base_url=self.url, timeout=5) as http:
                answer = await http.get(f"/health/{which}")
        except httpx.TransportError as error:
            return 0, {"error": repr(error)}
        return answer.status_code, answer.json()

    async def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 where it was not counted yet."""
        async with httpx.AsyncClient(base_url=self.url, timeout=5) as http:
            lines = (await http.get("/metrics")).text.splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.split("{")[0].split(" ")[0] == name and all(part in line for part in wanted)
        )

    def kill(self) -> None:
        """SIGKILL: no word of goodbye to anybody."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def suspend(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM; `exit_code` follows."""
        self._signal(signal.SIGTERM)

    async def exit_code(self, seconds: float) -> int:
        """The exit code, once it ended by itself. Raises ServiceFailed when it takes longer."""
        assert self._child is not None, "start it first"
        deadline = time.monotonic() + seconds
        while self._child.poll() is None:
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"{self.name} still runs {seconds:g} s after SIGTERM\n{self.log_tail()}"
                )
            await asyncio.sleep(POLL_SECONDS)
        return self._child.returncode

    def logged(self, message: str) -> list[dict[str, Any]]:
        """The log's entries with this message."""
        return [entry for entry in self.log_entries() if entry.get("message") == message]

    def log_entries(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def strays(self) -> list[str]:
        """Lines that are no log entry: tracebacks and warnings that nobody meant to print."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if line and not line.startswith("{")]

    def log_tail(self, lines: int = 25) -> str:
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"The end of {self.log}:", *(f"  {line[:400]}" for line in tail)])

    def _signal(self, number: signal.Signals) -> None:
        if self.running and self._child is not None:
            self._child.send_signal(number)


def run(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `app …` to its end."""
    return subprocess.run(
        [APP, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
