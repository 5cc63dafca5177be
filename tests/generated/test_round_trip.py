"""`app dev`, from outside, as users see it."""

import os
import time
from pathlib import Path

import pytest

from tests import demo, matrix
from tests.generated.conftest import Service

# One run of `app dev` at a time in the folder of a service.
of_base = pytest.mark.xdist_group(matrix.codes()[0].code)


@pytest.mark.corners
def test_a_request_is_published_consumed_and_logged(service: Service) -> None:
    check_round_trip(service, "kafka")


@of_base
def test_the_same_on_the_mock_broker(base: Service) -> None:
    check_round_trip(base, "mock")


def check_round_trip(service: Service, broker: str) -> None:
    trip = demo.round_trip_of(service.path)
    topic = demo.topic_of(service.path, trip)
    options = ("--broker", broker, "--fresh")
    with demo.running_service(service.path, *options, settings=service.settings) as (address, _):
        correlation_id = demo.round_trip(address, demo.log_tail(service.path), trip)
        event = demo.first_event(service.path, topic, service.settings)
        log_lines = demo.log_lines(service.path, correlation_id)
    assert topic in event
    assert correlation_id in event
    assert any("app.platform.http.tracing" in line for line in log_lines), log_lines
    assert any("kafka" in line for line in log_lines), "the consumer said nothing about it"


@of_base
def test_the_second_start_serves_and_leaves_nothing_behind(base: Service) -> None:
    with demo.running_service(base.path):
        pass
    begun = time.monotonic()
    with demo.running_service(base.path) as (_, process):
        taken = time.monotonic() - begun
    base.report(f"second start of app dev took {taken:.1f} s")
    assert processes_in(base.path) == []
    assert process.returncode == 0


def processes_in(folder: Path) -> list[str]:
    """List the command lines of running processes that work in `folder`, or name it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            working_directory = str((entry / "cwd").readlink())
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
        inside = working_directory.startswith(str(folder)) or str(folder) in command
        if inside and int(entry.name) != os.getpid():
            found.append(command)
    return found
