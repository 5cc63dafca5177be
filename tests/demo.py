"""Render a service, start it, do its round trip over HTTP, show it, stop it.

python -m tests.demo PATH [--keep] [--lean] [--module NAME ...]
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import yaml

from tests import rendering
from tests.shell import environment

START_SECONDS = 300  # the first start downloads a Java runtime's classes and the broker
ANSWER_SECONDS = 30
STOP_SECONDS = 60


@dataclass(frozen=True)
class RoundTrip:
    """A request, its event, and the URL at which the effect of the event's consumer appears."""

    path: str
    body: Mapping[str, str]
    event: str
    effect: str
    has_effect: Callable[[Mapping[str, Any]], bool]


SAMPLE_TRIP = RoundTrip(
    "/users",
    {"email": "ann@example.com", "username": "ann"},
    "user.created",
    "/users/{id}",
    lambda user: user.get("profile") is not None,
)
LEAN_TRIP = RoundTrip(
    "/heartbeats",
    {"source": "door"},
    "heartbeat.sent",
    "/heartbeats/{source}",
    lambda count: count.get("heartbeats", 0) > 0,
)


class DemoFailed(Exception):
    """The round trip failed. The message has the end of the service's log."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Render a service and show its round trip.")
    parser.add_argument("path", type=Path, help="where to render the service")
    parser.add_argument("--keep", action="store_true", help="leave the service running")
    parser.add_argument("--lean", action="store_true", help="without the sample domain")
    parser.add_argument("--module", action="append", default=[], help="a module to choose")
    options = parser.parse_args()
    try:
        answers = {"modules": options.module, "sample_domain": not options.lean}
        demonstrate(options.path.resolve(), answers, keep=options.keep)
    except DemoFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def demonstrate(service: Path, answers: rendering.Answers, *, keep: bool) -> None:
    if service.exists():
        shutil.rmtree(service)
    step(f"copier copy --defaults . {service}")
    template = service.with_name("template")
    if template.exists():
        shutil.rmtree(template)
    rendering.render(rendering.snapshot(template), service, answers)
    step("uv run app dev")
    with running_service(service, keep=keep) as (base, process):
        trip = round_trip_of(service)
        correlation_id = round_trip(base, log_tail(service), trip)
        topic = topic_of(service, trip)
        step(f"uv run app events tail {topic}")
        print(first_event(service, topic))
        step(f"grep {correlation_id} dev.log")
        for line in log_lines(service, correlation_id):
            print(line)
        if keep:
            print(f"\nIt serves at {base}/docs; its log is {service / 'dev.log'}.")
            print(f"Stop it with: kill -INT {process.pid}")


@contextmanager
def running_service(
    service: Path,
    *options: str,
    keep: bool = False,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run `app dev` on a free port; yield its base address and its process.

    It is stopped as by Ctrl-C in a terminal, and has to end with exit code 0.
    """
    port = free_port()
    with (service / "dev.log").open("wb") as log:
        process = subprocess.Popen(
            ("uv", "run", "app", "dev", "--port", str(port), *options),
            cwd=service,
            env={**environment(), **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    kept = False
    try:
        base = f"http://127.0.0.1:{port}"
        wait_until(
            lambda: is_ready(base, process), START_SECONDS, "the service is not ready", service
        )
        yield base, process
        kept = keep
    finally:
        if not kept:
            stop(process, service)


def stop(process: "subprocess.Popen[bytes]", service: Path) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    try:
        code = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise DemoFailed(
            f"it did not stop within {STOP_SECONDS} s\n{log_tail(service)()}"
        ) from None
    if code != 0:
        raise DemoFailed(f"it ended with exit code {code}\n{log_tail(service)()}")
    step(f"Ctrl-C: stopped, exit code {code}")


def round_trip(base: str, log: Callable[[], str], trip: RoundTrip) -> str:
    """Send the request, and wait for the consumer's effect.

    Returns the correlation id.
    """
    correlation_id = str(uuid4())
    body = json.dumps(trip.body)
    headers = {"X-Correlation-Id": correlation_id}
    step(f"curl {base}{trip.path} -H 'X-Correlation-Id: {correlation_id}' --json '{body}'")
    status, created = call(f"{base}{trip.path}", trip.body, headers)
    show(status, created)
    if status != 201:
        raise DemoFailed(f"expected 201\n{log()}")
    address = base + trip.effect.format(**created)
    step(f"curl {address}")
    deadline = time.monotonic() + ANSWER_SECONDS
    while not trip.has_effect((answer := call(address))[1]):
        if time.monotonic() > deadline:
            raise DemoFailed(f"no effect after {ANSWER_SECONDS} s: {answer}\n{log()}")
        time.sleep(0.1)
    show(*answer)
    return correlation_id


def first_event(
    service: Path, topic: str, settings: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return the first event of `topic`, as the service's own command prints it beside `app dev`."""
    result = subprocess.run(
        ("uv", "run", "app", "events", "tail", topic, "--from-beginning", "--limit", "1"),
        cwd=service,
        env={**environment(), **settings},
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=False,
    )
    if result.returncode != 0:
        raise DemoFailed(f"app events tail ended with {result.returncode}\n{result.stderr}")
    return result.stdout.strip()


def log_lines(service: Path, correlation_id: str) -> list[str]:
    """Return the log lines with that correlation id, shortened."""
    lines = (service / "dev.log").read_text().splitlines()
    entries = (
        json.loads(line) for line in lines if line.startswith("{") and correlation_id in line
    )
    return [
        f"{line['timestamp'][11:23]}  {line['logger']:<22} {line['message']}" for line in entries
    ]


def topic_of(service: Path, trip: RoundTrip) -> str:
    return f"{answers_of(service)['service_name']}.{trip.event}"


def round_trip_of(service: Path) -> RoundTrip:
    return SAMPLE_TRIP if answers_of(service)["sample_domain"] else LEAN_TRIP


def answers_of(service: Path) -> dict[str, Any]:
    answers: dict[str, Any] = yaml.safe_load((service / ".copier-answers.yml").read_text())
    return answers


def call(
    address: str, body: object = None, headers: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of the answer, also of an error."""
    data = None if body is None else json.dumps(body).encode()
    content = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(address, data, content)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def is_ready(base: str, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise DemoFailed(f"it ended at its start with exit code {process.returncode}")
    try:
        return call(f"{base}/health/ready")[0] == 200
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float, otherwise: str, service: Path) -> None:
    deadline = time.monotonic() + seconds
    try:
        while not holds():
            if time.monotonic() > deadline:
                raise DemoFailed(f"{otherwise} after {seconds:g} s")
            time.sleep(0.2)
    except DemoFailed as failure:
        raise DemoFailed(f"{failure}\n{log_tail(service)()}") from None


def log_tail(service: Path) -> Callable[[], str]:
    def last_lines() -> str:
        lines = (service / "dev.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-40:])

    return last_lines


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def step(what: str) -> None:
    print(f"\n$ {what}", flush=True)


def show(status: int, answer: object) -> None:
    print(f"{status} {json.dumps(answer, indent=2)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
