"""The HTTP server of a process: its socket and its signals."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from app.platform.config import ConfigurationError, HttpSettings
from app.platform.http import server as server_module
from app.platform.http.server import STOP_SIGNALS, PortInUse, Server, create_server, listen
from tests.fixtures import eventually


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    """Somebody else's port."""
    with socket.create_server((host, 0)) as other:
        yield other.getsockname()[1]


def free_port() -> int:
    with listening() as port:
        return port


def test_the_port_accepts_connections_at_once() -> None:
    port = free_port()
    with listen("127.0.0.1", port), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_a_port_in_use_is_reported_with_a_remedy() -> None:
    with listening() as port, pytest.raises(PortInUse) as refused:
        listen("127.0.0.1", port)

    assert str(refused.value) == (
        f"port {port} on 127.0.0.1 is in use: stop the process there, or choose another --port"
    )
    assert isinstance(refused.value, ConfigurationError)


def test_a_port_can_be_reused_at_once() -> None:
    port = free_port()
    listen("127.0.0.1", port).close()
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["203.0.113.1", "127.0..1", "bü..cher", "no such host"])
def test_a_foreign_host_is_reported(host: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on") as refused:
        listen(host, free_port())

    assert host in str(refused.value)
    assert not str(refused.value).endswith(": None")


def test_an_ipv6_address_is_accepted() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")

    with listen("::1", 0) as listener:
        assert listener.family is socket.AF_INET6


@pytest.fixture
def server() -> Iterator[Server]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield Server(uvicorn.Config(FastAPI(), log_config=None))
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_the_server_not_the_process(server: Server, number: signal.Signals) -> None:
    with server.capture_signals():
        os.kill(os.getpid(), number)

    assert server.should_exit


def test_signal_handlers_are_restored(server: Server) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with server.capture_signals():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before

    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_signal_after_the_stop_changes_nothing(server: Server) -> None:
    with server.capture_signals():
        os.kill(os.getpid(), signal.SIGINT)
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)


def test_a_signal_that_is_passed_on_is_no_second_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.capture_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert not server.force_exit
        monkeypatch.setattr(server_module, "REPEATED_SIGNAL_SECONDS", 0)
        os.kill(os.getpid(), signal.SIGINT)
    assert server.force_exit


@pytest.mark.parametrize("sends", [True, False])
async def test_a_request_on_a_fresh_connection_survives_the_stop(
    sends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a request is closed, and holds up the stop no longer than that."""
    monkeypatch.setattr(server_module, "FIRST_REQUEST_SECONDS", 2.0)
    listener = listen("127.0.0.1", 0)
    server = create_server(FastAPI(), HttpSettings(_env_file=None))
    serving = asyncio.create_task(server._serve([listener]))
    await eventually(lambda: asyncio.sleep(0, server.started))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    await eventually(lambda: asyncio.sleep(0, server.server_state.connections))
    server.should_exit = True
    await eventually(lambda: asyncio.sleep(0, not server.servers[0].is_serving()))
    if sends:
        writer.write(b"GET /none HTTP/1.1\r\nHost: service\r\n\r\n")
    received = await asyncio.wait_for(reader.read(), 20)
    assert received.startswith(b"HTTP/1.1 404 ") is sends
    await asyncio.wait_for(serving, 20)
    writer.close()


def test_no_collection_interrupts_the_largest_batch() -> None:
    """2,000 events are about 54,000 objects."""
    hold_a_batch = """
import gc
from app.platform.http.server import tune_garbage_collector
tune_garbage_collector()
before = [generation["collections"] for generation in gc.get_stats()]
batch = [[number] for number in range(60_000)]
assert [generation["collections"] for generation in gc.get_stats()] == before
"""
    python = (sys.executable, "-c", hold_a_batch)
    done = subprocess.run(python, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
