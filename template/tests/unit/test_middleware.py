from collections.abc import Callable
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient, Response
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from app.tracing import Trace, TracingMiddleware, current

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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
    answer = await request(app, x_correlation_id="story", traceparent=PARENT)

    (trace,) = app.traces
    assert trace.correlation_id == "story"
    assert trace.traceparent is not None
    assert trace.traceparent[:36] == PARENT[:36]
    assert answer.headers["x-correlation-id"] == "story"


async def test_a_request_without_a_trace_gets_one_and_the_caller_is_told() -> None:
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


async def test_a_correlation_id_of_any_bytes_does_no_harm() -> None:
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


def line_of(logs: list[Any]) -> dict[str, Any]:
    (entry,) = [entry for entry in logs if entry["event"] == "request"]
    return dict(entry)


async def test_each_request_is_one_log_line() -> None:
    with capture_logs() as logs:
        await request(App())

    line = line_of(logs)
    assert (line["method"], line["path"], line["status"]) == ("GET", "/orders", 202)
    assert line["milliseconds"] >= 0


async def test_a_request_that_fails_is_logged_as_one() -> None:
    with capture_logs() as logs, pytest.raises(ValueError, match="broken"):
        await request(App(ValueError("broken")))

    assert line_of(logs)["status"] == 500


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
async def test_what_is_asked_every_few_seconds_is_not_logged(path: str) -> None:
    with capture_logs() as logs:
        await request(App(), path)

    assert logs == []


async def test_no_trace_is_left_behind() -> None:
    app = App()
    await request(app, x_correlation_id="story")

    assert current().correlation_id != "story"


async def test_what_is_no_request_passes_untouched() -> None:
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
