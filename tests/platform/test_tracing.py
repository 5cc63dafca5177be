"""The trace of the current work, and that of a request."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from httpx import ASGITransport, AsyncClient, Response
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from app.platform.http.tracing import TracingMiddleware
from app.platform.tracing import Trace, bind_trace, child_traceparent, current, trace_from

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_work_without_a_trace_gets_a_new_one() -> None:
    assert current().correlation_id != current().correlation_id


def test_a_trace_is_bound_to_its_block() -> None:
    outer, inner = Trace("outer"), Trace("inner")
    with bind_trace(outer):
        with bind_trace(inner):
            assert current() is inner
        assert current() is outer
    assert current() is not outer


def test_a_failing_block_unbinds_its_trace() -> None:
    with pytest.raises(ValueError, match="broken"), bind_trace(Trace("correlation-1")):
        raise ValueError("broken")

    assert current().correlation_id != "correlation-1"
    assert structlog.contextvars.get_contextvars() == {}


def test_the_log_lines_of_a_block_have_its_correlation_id() -> None:
    with bind_trace(Trace("correlation-1")):
        assert structlog.contextvars.get_contextvars() == {"correlation_id": "correlation-1"}


async def test_concurrent_tasks_have_separate_traces() -> None:
    async def work(name: str) -> str:
        with bind_trace(Trace(name)):
            await asyncio.sleep(0)
            return current().correlation_id

    assert await asyncio.gather(*map(work, "abc")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "given", ["correlation-1", "6f1c9a3e-3f0b-4c55", "a/b+c=d:e.f_g", "x" * 128]
)
def test_a_good_correlation_id_is_kept(given: str) -> None:
    assert trace_from(given, None).correlation_id == given


@pytest.mark.parametrize(
    "given", [None, "", "a b", "a\nb", "story\n", "<script>", "né", "\x00", "\ud800", "x" * 129]
)
def test_an_unsafe_correlation_id_is_replaced(given: str | None) -> None:
    assert len(trace_from(given, None).correlation_id) == 36


def test_a_child_span_stays_in_its_trace() -> None:
    version, trace_id, span, flags = child_traceparent(PARENT).split("-")

    assert (version, trace_id, flags) == tuple(PARENT.split("-")[i] for i in (0, 1, 3))
    assert span != PARENT.split("-")[2]


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "nonsense",
        PARENT + "\n",
        PARENT.upper(),
        PARENT[:-1],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        "ff" + PARENT[2:],
    ],
)
def test_a_malformed_traceparent_begins_a_new_trace(given: str | None) -> None:
    child = child_traceparent(given)

    assert child_traceparent(child)[:36] == child[:36]  # it is well formed itself
    assert PARENT.split("-")[1] not in child


@given(st.none() | st.text(), st.none() | st.text())
def test_any_input_gives_a_well_formed_trace(
    correlation_id: str | None, traceparent: str | None
) -> None:
    trace = trace_from(correlation_id, traceparent)

    assert trace.traceparent is not None
    assert trace_from(trace.correlation_id, None).correlation_id == trace.correlation_id
    assert child_traceparent(trace.traceparent)[:36] == trace.traceparent[:36]


class App:
    """Answers 202 and keeps the trace under which it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.traces: list[Trace] = []
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.traces.append(current())
        if self._error is not None:
            raise self._error
        await send({"type": "http.response.start", "status": 202})  # headers are optional
        await send({"type": "http.response.body", "body": b""})


async def request(app: App, path: str = "/orders", **headers: str) -> Response:
    transport = ASGITransport(TracingMiddleware(app))
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with AsyncClient(transport=transport, base_url="http://service") as http:
        return await http.get(path, headers=sent)


async def test_the_callers_correlation_id_is_kept_and_returned() -> None:
    app = App()
    answer = await request(app, x_correlation_id="correlation-1", traceparent=PARENT)

    (trace,) = app.traces
    assert trace.correlation_id == "correlation-1"
    assert trace.traceparent is not None
    assert trace.traceparent[:36] == PARENT[:36]
    assert answer.headers["x-correlation-id"] == "correlation-1"


async def test_a_request_without_a_trace_gets_a_new_one() -> None:
    app = App()
    answer = await request(app)

    assert answer.headers["x-correlation-id"] == app.traces[0].correlation_id
    assert len(app.traces[0].correlation_id) == 36
    assert app.traces[0].traceparent is not None


@pytest.mark.parametrize("given", ["a b", "<script>", "x" * 129, ""])
async def test_a_malformed_correlation_id_is_refused(given: str) -> None:
    app = App()
    answer = await request(app, x_correlation_id=given)

    assert answer.headers["x-correlation-id"] != given
    assert app.traces[0].correlation_id == answer.headers["x-correlation-id"]


async def test_a_correlation_id_that_is_no_text_is_replaced() -> None:
    app = App()
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/orders",
        "headers": [(b"x-correlation-id", b"\xff\xfe"), (b"traceparent", b"\xff")],
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the request has no body")

    await TracingMiddleware(app)(scope, receive, send)

    ((name, value),) = sent[0]["headers"]
    assert name == b"x-correlation-id"
    assert value == app.traces[0].correlation_id.encode()


def request_line(logs: list[Any]) -> dict[str, Any]:
    (entry,) = [entry for entry in logs if entry["event"] == "request"]
    return dict(entry)


async def test_each_request_is_one_log_line() -> None:
    with capture_logs() as logs:
        await request(App())

    line = request_line(logs)
    assert (line["method"], line["path"], line["status"]) == ("GET", "/orders", 202)
    assert line["milliseconds"] >= 0


async def test_a_failing_request_is_logged_with_status_500() -> None:
    with capture_logs() as logs, pytest.raises(ValueError, match="broken"):
        await request(App(ValueError("broken")))

    assert request_line(logs)["status"] == 500


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
async def test_requests_of_probes_are_not_logged(path: str) -> None:
    with capture_logs() as logs:
        await request(App(), path)

    assert logs == []


async def test_the_trace_of_a_request_ends_with_it() -> None:
    app = App()
    await request(app, x_correlation_id="correlation-1")

    assert current().correlation_id != "correlation-1"


async def test_other_connections_pass_unchanged() -> None:
    seen: list[tuple[object, ...]] = []

    async def app(*received: object) -> None:
        seen.append(received)

    parts: tuple[Any, Callable[[], None], Callable[[], None]] = (
        {"type": "lifespan"},
        lambda: None,
        lambda: None,
    )
    await TracingMiddleware(app)(*parts)  # type: ignore[arg-type]  # they are only passed on

    assert seen == [parts]
