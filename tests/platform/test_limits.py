"""Limits of requests: what is too large or too slow is refused, by a real process."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi import Depends, FastAPI
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel, ConfigDict

from app.platform.config import ConfigurationError, HttpSettings, load
from app.platform.http import problems as errors
from app.platform.http.dependencies import reject_unknown_query

MAX_BODY = 100_000
HUNDRED_MEGABYTES = 100_000_000
PATIENCE = 60  # seconds: none of them is a measurement


class Service:
    """A process of the service; neither of its servers is there."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self.port = port
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def memory(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self._process.poll() is None, self.log
            try:
                self.connect().close()
            except OSError:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.1)
            else:
                return


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Service]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nowhere = {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
        "HTTP_MAX_BODY_BYTES": str(MAX_BODY),
    }
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "api", "--port", str(port)],
            env={**os.environ, **nowhere, **settings},
            stdout=output,
            stderr=output,
        )
    try:
        service = Service(process, port, log)
        service.wait_until_it_listens()
        yield service
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Heads have a second, idle connections too, bodies all the time in the world."""
    with running(
        tmp_path_factory.mktemp("limits"),
        HTTP_HEADER_TIMEOUT_SECONDS="1",
        HTTP_KEEP_ALIVE_TIMEOUT_SECONDS="1",
        HTTP_BODY_TIMEOUT_SECONDS="600",
    ) as service:
        yield service


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Bodies have a second, heads all the time in the world."""
    with running(
        tmp_path_factory.mktemp("limits"),
        HTTP_HEADER_TIMEOUT_SECONDS="600",
        HTTP_KEEP_ALIVE_TIMEOUT_SECONDS="600",
        HTTP_BODY_TIMEOUT_SECONDS="1",
    ) as service:
        yield service


def head(*headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} /nowhere HTTP/1.1", "Host: service", *headers, "", ""]
    return "\r\n".join(lines).encode()


def chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b"x" * size)


def rest_of(connection: socket.socket) -> bytes:
    """Read the bytes that the service sends until it closes the connection."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:  # closed, too
        pass
    return received


def first_answer(connection: socket.socket) -> tuple[int, Any]:
    """One answer, read by its length: the connection may stay open."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        length = 0
        while line := stream.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(stream.read(length))


def trickle(connection: socket.socket, what: Iterable[bytes]) -> bytes:
    """Send a little at a time until the service closes; what it said."""
    connection.settimeout(0.1)
    received, deadline = b"", time.monotonic() + PATIENCE
    for part in what:
        assert time.monotonic() < deadline, "the connection is still open"
        try:
            connection.sendall(part)
            answer = connection.recv(65536)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            break
        if not answer:
            break
        received += answer
    return received


def forever(part: bytes) -> Iterator[bytes]:
    while True:
        yield part


def test_a_body_that_says_it_is_too_large_is_not_awaited(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head(f"Content-Length: {MAX_BODY + 1}"))
        status, problem = first_answer(connection)
        assert status == 413
        assert problem["type"] == "urn:problem-type:body-too-large"
        assert str(MAX_BODY) in problem["detail"]
        assert rest_of(connection) == b""


def test_a_body_without_a_length_is_counted(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + chunk(MAX_BODY // 2))
        connection.sendall(chunk(MAX_BODY // 2) + chunk(1))
        assert first_answer(connection)[0] == 413
        assert rest_of(connection) == b""


def test_a_body_of_the_largest_size_is_taken(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head(f"Content-Length: {MAX_BODY}") + b"x" * MAX_BODY)
        assert first_answer(connection)[0] == 404
    with service.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + chunk(MAX_BODY) + b"0\r\n\r\n")
        assert first_answer(connection)[0] == 404


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_every_method_has_the_limit(service: Service, method: str) -> None:
    with service.connect() as connection:
        connection.sendall(head(f"Content-Length: {MAX_BODY + 1}", method=method))
        assert first_answer(connection)[0] == 413


@pytest.mark.parametrize("chunked", [False, True])
def test_a_hundred_megabytes_stay_outside(service: Service, chunked: bool) -> None:
    """The client sends all before it reads, and gets the answer nevertheless, or at least an end."""
    with service.connect() as warm:
        warm.sendall(head(f"Content-Length: {MAX_BODY}") + b"x" * MAX_BODY)
        first_answer(warm)
    before = service.memory
    kind = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {HUNDRED_MEGABYTES}"
    part = chunk(1_000_000) if chunked else b"x" * 1_000_000
    with service.connect() as connection:
        connection.sendall(head(kind))
        try:
            for _ in range(HUNDRED_MEGABYTES // 1_000_000):
                connection.sendall(part)
        except (ConnectionResetError, BrokenPipeError):  # it lingers for a time only
            pass
        else:
            assert first_answer(connection)[0] == 413
        rest_of(connection)
        assert service.memory - before < 30_000_000


def test_a_client_that_sends_all_first_gets_its_answer(service: Service) -> None:
    """The bytes that nobody wants are read for a moment: a reset would take the answer along."""
    with service.connect() as connection:
        connection.sendall(head(f"Content-Length: {100 * MAX_BODY}") + b"x" * (100 * MAX_BODY))
        assert first_answer(connection)[0] == 413


def test_a_client_that_goes_on_after_its_answer_is_closed(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + chunk(MAX_BODY + 1))
        assert b" 413 " in trickle(connection, forever(chunk(1)))


def test_garbage_after_a_refused_body_closes_quietly(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + chunk(MAX_BODY + 1))
        assert first_answer(connection)[0] == 413
        connection.sendall(b"this is no chunk\r\n\r\n")
        assert rest_of(connection) == b""
    assert "Traceback" not in service.log
    assert "Fatal error" not in service.log


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET / HTTP/1.1\r\nHost: service\r\nX-"])
def test_a_head_that_stops_is_closed(service: Service, sent: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        assert rest_of(connection) == b""


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nX-Slow: "])
def test_a_head_that_trickles_is_closed(service: Service, begin: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(begin)
        assert trickle(connection, forever(b"x")) == b""


def test_a_head_that_trickles_later_is_closed(service: Service) -> None:
    """On a connection that has served a request already."""
    with service.connect() as connection:
        connection.sendall(head(method="GET"))
        assert first_answer(connection)[0] == 404
        assert trickle(connection, (bytes([byte]) for byte in b"GET /" + b"x" * 10_000)) == b""


def test_an_idle_connection_is_closed(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head(method="GET"))
        assert first_answer(connection)[0] == 404
        assert rest_of(connection) == b""


def test_a_request_with_a_head_in_time_may_take_longer(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head("Content-Length: 3"))
        time.sleep(2.5)  # more than heads and idle connections have
        connection.sendall(b"abc")
        assert first_answer(connection)[0] == 404


@pytest.mark.parametrize("size", [30_000, 200_000])
def test_a_head_that_is_too_large_is_refused(service: Service, size: int) -> None:
    """Also one that arrives whole, at once."""
    with service.connect() as connection:
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(head(f"X-Large: {'x' * size}", method="GET"))
        assert b" 404 " not in rest_of(connection)


def test_a_head_of_a_usual_size_is_taken(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(head(f"X-Large: {'x' * 15_000}", method="GET"))
        assert first_answer(connection)[0] == 404


def test_a_body_that_stops_is_refused(impatient: Service) -> None:
    with impatient.connect() as connection:
        connection.sendall(head("Content-Length: 10") + b"abc")
        status, problem = first_answer(connection)
        assert status == 408
        assert problem["type"] == "urn:problem-type:body-timeout"
        assert rest_of(connection) == b""


def test_a_body_that_trickles_is_refused(impatient: Service) -> None:
    with impatient.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        assert b" 408 " in trickle(connection, forever(chunk(1)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_MAX_BODY_BYTES", "0"),
        ("HTTP_MAX_BODY_BYTES", "1 MB"),
        ("HTTP_BODY_TIMEOUT_SECONDS", "0"),
        ("HTTP_BODY_TIMEOUT_SECONDS", "inf"),
        ("HTTP_HEADER_TIMEOUT_SECONDS", "-1"),
        ("HTTP_HEADER_TIMEOUT_SECONDS", "nan"),
        ("HTTP_KEEP_ALIVE_TIMEOUT_SECONDS", "0"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        load(HttpSettings)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


@pytest.fixture
async def client() -> Any:
    app = FastAPI()
    errors.install(app)

    @app.post("/strict", dependencies=[Depends(reject_unknown_query)])
    async def strict(body: Strict) -> None: ...

    transport = ASGITransport(app)
    async with AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


@pytest.mark.parametrize("letter", ["k", "/", "~", "é", "😀"])
async def test_a_problem_lists_a_few_of_many_errors(client: AsyncClient, letter: str) -> None:
    names = [f"{number}{letter * 20}" for number in range(200_000)]
    answer = await client.post("/strict", json=dict.fromkeys(names, 1))

    assert answer.status_code == 422
    assert len(answer.content) < 64_000
    problem = answer.json()
    assert len(problem["errors"]) == 16
    assert problem["detail"].endswith("; 199984 more errors than are listed here")


async def test_thousands_of_unknown_parameters_are_shortened(client: AsyncClient) -> None:
    """As many as the client used here can send: a request's head is smaller still."""
    answer = await client.post("/strict?" + "&".join(map(str, range(10_000))), json={})

    assert answer.status_code == 422
    assert len(answer.content) < 64_000
    assert "9984 more errors" in answer.json()["detail"]


async def test_a_long_name_is_shortened(client: AsyncClient) -> None:
    answer = await client.post("/strict", json={"😀" * 100_000: 1})

    assert answer.status_code == 422
    assert len(answer.content) < 64_000


async def test_few_errors_are_reported_whole(client: AsyncClient) -> None:
    answer = await client.post("/strict?x=1", json={"a": 1})

    problem = answer.json()
    assert problem["detail"] == "query /x: unknown; there are none here"
    answer = await client.post("/strict", json={str(number): 1 for number in range(16)})
    assert len(answer.json()["errors"]) == 16
    assert "more errors" not in answer.json()["detail"]


@pytest.mark.parametrize("letter", ["(", "é", "😀"])
async def test_a_long_path_is_shortened(client: AsyncClient, letter: str) -> None:
    answer = await client.get("/" + letter * 5_000)

    assert answer.status_code == 404
    assert "instance" not in answer.json()
    assert len(answer.content) < 1_000
