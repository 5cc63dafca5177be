import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.platform.dev.errors import ServerFailed
from app.platform.dev.process import ServerProcess

SERVE = "import time; print('ready', flush=True); time.sleep(600)"
FAIL = "import sys; sys.exit('the disk is full')"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess("the server", tmp_path, f"data={tmp_path}")
    yield process
    process.kill()


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_server_that_ends_at_its_start_shows_its_log(process: ServerProcess) -> None:
    process.spawn(python(FAIL))

    with pytest.raises(ServerFailed, match=r"the server ended(.|\n)*the disk is full"):
        process.wait_ready(lambda: False, 20)


def test_server_that_never_gets_ready_fails_in_time(process: ServerProcess) -> None:
    process.spawn(python(SERVE))

    with pytest.raises(ServerFailed, match=r"not ready within 0\.1 s"):
        process.wait_ready(lambda: False, 0.1)


def test_leftover_is_known_by_its_command_line_and_stopped(
    process: ServerProcess, tmp_path: Path
) -> None:
    mark = f"data={tmp_path}"
    process.spawn(python(SERVE, mark))
    process.wait_ready(lambda: process.log_contains(b"ready"), 20)

    # Another object, as after a restart of this process: it knows of the server by its file only.
    assert ServerProcess("the server", tmp_path, mark).stop_leftover()

    assert not process.running


def test_stranger_with_the_recorded_process_id_is_left_alone(
    process: ServerProcess, tmp_path: Path
) -> None:
    process.spawn(python(SERVE, "data=elsewhere"))

    assert not ServerProcess("the server", tmp_path, f"data={tmp_path}").stop_leftover()

    assert process.running


def test_log_of_the_last_run_is_kept(process: ServerProcess) -> None:
    process.spawn(python(FAIL))
    process.wait_stopped(20)
    process.spawn(python(SERVE))

    assert "the disk is full" in process.log.with_suffix(".log.1").read_text()
