"""The HTTP server of a process: its socket and its signals."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from app.platform.config import ConfigurationError
from app.platform.http.server import STOP_SIGNALS, PortInUse, Server, listen


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


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_an_ipv6_address_is_accepted() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")

    with listen("::1", 0) as listener:
        assert listener.family is socket.AF_INET6


@pytest.fixture
def server() -> Server:
    return Server(uvicorn.Config(FastAPI(), log_config=None))


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
