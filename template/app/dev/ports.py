"""Loopback ports for embedded servers."""

import os
import secrets
import socket
import threading

LOOPBACK = "127.0.0.1"

# Below every system's ephemeral range: a client that keeps connecting to a dead ephemeral port
# can end up connected to itself, and then the restarted server cannot have its port back.
_LOWEST, _HIGHEST = 20_000, 32_000

_given: set[int] = set()
_given_lock = threading.Lock()


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as servers do: connections that linger are no hindrance
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port that nobody listens on, and that this process was not given before."""
    with _given_lock:
        while True:
            # `random` is seeded by test runners, alike in sessions that run side by side.
            port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
            if port not in _given and is_free(port):
                _given.add(port)
                return port
