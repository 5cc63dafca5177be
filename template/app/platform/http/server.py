"""The HTTP server of a process: one socket, and a graceful shutdown with exit code 0 on signals."""

import asyncio
import errno
import gc
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.platform import logs
from app.platform.config import ConfigurationError, HttpSettings, Settings
from app.platform.http.app import create_app
from app.platform.runtime import Configuration
from app.platform.service import Role, Service, installed_version

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    STOP_SIGNALS.append(signal.SIGHUP)

GRACEFUL_SHUTDOWN_SECONDS = 10
MAX_HEAD_BYTES = 16 * 1024
_HEAD_PART_BYTES = 4 * 1024

# On a stop, a connection that was just opened has this long to send its first request.
FIRST_REQUEST_SECONDS = 0.5
# A signal often arrives twice, from the terminal and from uv; only a later one is a second Ctrl-C.
REPEATED_SIGNAL_SECONDS = 1.0


class PortInUse(ConfigurationError):
    """Another process is listening on the port."""


class Server(uvicorn.Server):
    """A uvicorn server that does not raise the signal again after it has stopped."""

    _stopped_at = float("-inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop gracefully; a second Ctrl-C ends open requests."""
        if time.monotonic() - self._stopped_at < REPEATED_SIGNAL_SECONDS:
            return
        self._stopped_at = time.monotonic()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # The exit that follows has its code already.
                signal.signal(number, signal.SIG_IGN if self.should_exit else handler)


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 with a timeout on a request's line and headers, in seconds."""

    header_timeout: float
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        # h11 limits the size of a head only while it is incomplete, so feed it in parts.
        while len(data) > _HEAD_PART_BYTES and self.conn.their_state is h11.IDLE:
            super().data_received(data[:_HEAD_PART_BYTES])
            data = data[_HEAD_PART_BYTES:]
        if not self.transport.is_closing():
            super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch_head()

    def shutdown(self) -> None:
        if self.cycle is None:  # closing it now would reset a request that is on its way
            self.loop.call_later(FIRST_REQUEST_SECONDS, self._shut_down_now)
        else:
            super().shutdown()

    def _shut_down_now(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:  # the rest of a rejected body is not HTTP; the response is already on its way
            self.transport.close()

    def _watch_head(self) -> None:
        waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if waiting and self._head_timer is None:
            close = self.timeout_keep_alive_handler
            self._head_timer = self.loop.call_later(self.header_timeout, close)
        elif not waiting and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def protocol_with_header_timeout(seconds: float) -> type[HeaderTimeoutProtocol]:
    class Configured(HeaderTimeoutProtocol):
        header_timeout = seconds

    return Configured


def serve(
    service: Service, roles: Collection[Role], configuration: Configuration, host: str, port: int
) -> None:
    """Run a process of `service` with `roles` until a signal; drain, and return.

    Raises ConfigurationError for wrong settings and for a port that is in use.
    """
    configure_logs(configuration.service)
    listener = listen(host, port)
    try:
        run(create_app(service, roles, configuration), listener, configuration.http)
    finally:
        listener.close()


def configure_logs(settings: Settings) -> None:
    """Configure the log of a serving process, whose lines name the service and its version."""
    version = installed_version() or "unknown"
    resource = {"service_name": settings.service_name, "service_version": version}
    logs.configure(settings.log_level, settings.log_format, resource=resource)


def tune_garbage_collector() -> None:
    """Freeze start-up objects and raise the collector's threshold.

    Start-up objects live as long as the process. A batch of messages is many objects at once: with
    the default threshold, collections take up to a third of its processing time. The largest batches,
    of 2,000 events, have about 54,000 objects at once, which end with the batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(150_000)


def run(app: ASGIApp, listener: socket.socket, limits: HttpSettings) -> None:
    """Serve `app` on `listener` until a signal. Exits with code 3 if it cannot start."""
    tune_garbage_collector()
    create_server(app, limits).run(sockets=[listener])


def create_server(app: ASGIApp, limits: HttpSettings) -> Server:
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            http=protocol_with_header_timeout(limits.http_header_timeout_seconds),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=limits.http_keep_alive_timeout_seconds,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """Open a socket bound to `host` and `port`. Raises ConfigurationError if that is impossible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":  # there, the option would let two processes share the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, TypeError) as error:  # TypeError: a malformed host
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use: stop the process there, or choose another --port"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}") from error
    listener.set_inheritable(True)
    return listener
