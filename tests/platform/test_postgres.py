"""PostgreSQL as `app dev` and the tests run it: its life, and what happens when it is cut short."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from app.platform.dev.errors import DevelopmentServerError, FolderInUse, PortTaken
from app.platform.dev.postgres import PostgresServer
from app.platform.dev.process import run_as

LEAVE_BEHIND = """
import os, signal, sys
from pathlib import Path
from app.platform.dev.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]), fsync=False)
server.start()
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("postgres")


@pytest.fixture
def server(data: Path) -> Iterator[PostgresServer]:
    """A server that is not running yet; its data outlives the test."""
    server = PostgresServer(data, fsync=False)
    yield server
    server.kill()


async def fetch(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_data_and_address_outlive_a_run(server: PostgresServer, data: Path) -> None:
    with PostgresServer(data, fsync=False) as last:
        await fetch(last.url, "CREATE TABLE kept_over_runs AS SELECT 42 AS answer")

    server.start()

    assert server.url == last.url
    assert await fetch(server.url, "SELECT answer FROM kept_over_runs") == 42


async def test_killed_server_recovers_what_was_committed(server: PostgresServer) -> None:
    server.start()
    await fetch(server.url, "CREATE TABLE kept_over_kill AS SELECT 42 AS answer")
    server.kill()
    assert not server.running

    server.start()

    assert await fetch(server.url, "SELECT answer FROM kept_over_kill") == 42


async def test_server_left_by_a_killed_process_is_stopped_and_replaced(
    server: PostgresServer, data: Path
) -> None:
    command = [sys.executable, "-c", LEAVE_BEHIND, str(data)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    leftover = int(done.stdout)

    server.start()

    assert server.pid != leftover
    assert await fetch(server.url, "SELECT 1") == 1


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with the server, and is the same system user's."""
    options = run_as("nobody") if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "600"], **options) as process:
        yield process
        process.kill()


async def test_reused_process_id_does_not_prevent_the_start(
    server: PostgresServer, data: Path, stranger: subprocess.Popen[bytes]
) -> None:
    server.start()
    server.kill()
    pid_file = data / "cluster" / "postmaster.pid"
    _, *rest = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(stranger.pid), *rest]) + "\n")

    server.start()

    assert stranger.poll() is None
    assert await fetch(server.url, "SELECT 1") == 1


async def test_databases_are_made_and_dropped_with_their_clients(server: PostgresServer) -> None:
    server.start()
    url = server.create_database("short_lived")
    connection = await asyncpg.connect(url)

    server.drop_database("short_lived")

    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url)
    connection.terminate()


async def test_suspended_server_answers_nobody_until_it_is_resumed(server: PostgresServer) -> None:
    server.start()
    connection = await asyncpg.connect(server.url)
    server.suspend()
    answer = asyncio.create_task(connection.fetchval("SELECT 1"))
    done, _ = await asyncio.wait([answer], timeout=0.3)
    assert not done

    server.resume()

    assert await answer == 1
    await connection.close()


def test_port_in_use_is_said(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} is in use"):
            PostgresServer(data, port, fsync=False).start()


def test_second_server_on_the_same_data_is_refused(server: PostgresServer, data: Path) -> None:
    server.start()

    with pytest.raises(FolderInUse, match="is in use by process"):
        PostgresServer(data, fsync=False).start()

    assert server.running


def test_data_of_another_version_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "PG_VERSION").write_text("16\n")

    with pytest.raises(DevelopmentServerError, match=r"PostgreSQL 16.*--fresh"):
        PostgresServer(tmp_path).start()
