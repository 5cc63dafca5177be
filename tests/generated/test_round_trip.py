"""`app dev`, from outside, as a person uses it."""

import os
import time
from pathlib import Path

import pytest

from tests import demo, matrix
from tests.generated.conftest import Service

# One run of `app dev` at a time in the folder of a service.
of_base = pytest.mark.xdist_group(matrix.codes()[0].code)


def test_what_is_sent_is_published_consumed_and_told_in_the_log(service: Service) -> None:
    the_story_is_told(service, "kafka")


@of_base
def test_the_same_on_the_mock_broker(base: Service) -> None:
    the_story_is_told(base, "mock")


def the_story_is_told(service: Service, broker: str) -> None:
    trip = demo.trip_of(service.path)
    topic = demo.topic_of(service.path, trip)
    options = ("--broker", broker, "--fresh")
    with demo.running(service.path, *options, settings=service.settings) as (address, _):
        correlation_id = demo.round_trip(address, demo.tail(service.path), trip)
        event = demo.event(service.path, topic, service.settings)
        story = demo.story(service.path, correlation_id)
    assert topic in event
    assert correlation_id in event
    assert any("app.platform.tracing" in line for line in story), story
    assert any("kafka" in line for line in story), "the consumer said nothing about it"


@of_base
def test_the_second_start_serves_and_leaves_nothing_behind(base: Service) -> None:
    with demo.running(base.path):
        pass
    begun = time.monotonic()
    with demo.running(base.path) as (_, process):
        taken = time.monotonic() - begun
    base.say(f"second start of app dev took {taken:.1f} s")
    assert processes_below(base.path) == []
    assert process.returncode == 0


def processes_below(folder: Path) -> list[str]:
    """Command lines of living processes that work in `folder`, or name it."""
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
