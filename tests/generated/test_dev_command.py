"""`app dev` killed without warning: the next run finds what was left, and stops all of it."""

import os
import signal
import time

import pytest

from tests import demo, matrix
from tests.generated.conftest import Service
from tests.generated.test_round_trip import processes_below

SECONDS = 10

# One run of `app dev` at a time in the folder of a service.
pytestmark = pytest.mark.xdist_group(matrix.codes()[0].code)


def test_a_run_that_was_killed_is_mended_by_the_next(base: Service) -> None:
    with demo.running(base.path, "--fresh", keep=True) as (_, process):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(SECONDS)
    assert processes_below(base.path) != [], "servers outlive a kill of what started them"
    with demo.running(base.path) as (address, _):
        demo.round_trip(address, demo.tail(base.path), demo.trip_of(base.path))
    deadline = time.monotonic() + SECONDS
    while processes_below(base.path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_below(base.path) == []
