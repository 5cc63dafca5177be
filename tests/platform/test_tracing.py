"""The trace of the current work, and that of a request."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from httpx import ASGITransport, AsyncClient, Response
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from app.platform.http.tracing import TracingMiddleware
from app.platform.kafka.spans import sampling_of
from app.platform.tracing import (
    Trace,
    bind_batch,
    bind_trace,
    carrier_of,
    caused_by,
    context_of,
    context_of_traceparent,
    current,
    headers_of_context,
    link_of,
    trace_from,
    traceparent_of,
)

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"
STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"


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
    assert trace_from(given).correlation_id == given


@pytest.mark.parametrize(
    "given", [None, "", "a b", "a\nb", "story\n", "<script>", "né", "\x00", "\ud800", "x" * 129]
)
def test_an_unsafe_correlation_id_is_replaced(given: str | None) -> None:
    assert len(trace_from(given).correlation_id) == 36


def arriving(traceparent: str, tracestate: str = STATE) -> Context:
    return context_of(
        [("traceparent", traceparent.encode()), ("tracestate", tracestate.encode()), ("x", None)]
    )


@pytest.mark.parametrize("parent", [PARENT, UNSAMPLED])
def test_a_senders_context_is_passed_on_unchanged(parent: str) -> None:
    with bind_trace(Trace("correlation-1"), arriving(parent)):
        passed_on = headers_of_context()

    assert passed_on == (("traceparent", parent.encode()), ("tracestate", STATE.encode()))
    assert headers_of_context() == ()


def test_work_without_a_context_sends_none() -> None:
    with bind_trace(Trace("correlation-1"), context_of([("correlation-id", b"correlation-1")])):
        assert headers_of_context() == ()
        assert traceparent_of() is None


def test_a_newer_traceparent_is_read_as_the_specification_says() -> None:
    """Additions of a later version are ignored, and not sent: their meaning is unknown."""
    newer = arriving(f"cc{PARENT[2:]}-what-the-future-will-be-like")

    assert carrier_of(newer) == {"traceparent": PARENT, "tracestate": STATE}


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        "\ud83d\ude00",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-more",
        PARENT.replace("-", "_"),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        "ff" + PARENT[2:],
        "cc" + PARENT[2:] + "more",
    ],
)
def test_a_malformed_traceparent_is_as_if_it_were_missing(given: str) -> None:
    headers = [
        ("traceparent", given.encode("utf-8", "surrogatepass")),
        ("tracestate", STATE.encode()),
    ]
    assert carrier_of(context_of(headers)) == {}
    assert link_of(context_of(headers)) is None


@pytest.mark.parametrize("state", ["", "no pair", "a=1,a=2", "k=" + "v" * 9000])
def test_a_malformed_tracestate_leaves_the_trace(state: str) -> None:
    assert carrier_of(arriving(PARENT, state)) == {"traceparent": PARENT}


def test_several_tracestates_are_one() -> None:
    headers = [("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]
    context = context_of([(name, value.encode()) for name, value in headers])

    assert carrier_of(context)["tracestate"] == "a=1,b=2"


@pytest.mark.parametrize("last", [PARENT, UNSAMPLED, "nonsense"])
def test_of_several_traceparents_the_last_counts(last: str) -> None:
    """As of every other header of a message, wherever it is read."""
    first = f"00-{7:032x}-{9:016x}-01"
    headers = [("traceparent", each.encode()) for each in (first, last)]

    context = context_of([*headers, ("traceparent", None)])
    is_valid = last != "nonsense"
    assert carrier_of(context) == ({"traceparent": last} if is_valid else {})
    assert sampling_of(headers) is ({PARENT: True, UNSAMPLED: False}.get(last))


@given(st.binary(), st.binary())
def test_no_header_ends_the_work(traceparent: bytes, tracestate: bytes) -> None:
    context = context_of([("traceparent", traceparent), ("tracestate", tracestate)])

    again = carrier_of(context)
    assert carrier_of(context_of_traceparent(again.get("traceparent"))).keys() <= again.keys()


def test_each_event_of_a_batch_has_its_own_context() -> None:
    first, second, unknown = uuid4(), uuid4(), uuid4()
    contexts = {first: arriving(PARENT), second: context_of([])}

    def find(event_id: UUID) -> tuple[Trace, Context] | None:
        found = contexts.get(event_id)
        return None if found is None else (Trace(f"of-{event_id}", str(event_id)), found)

    with bind_batch(find):
        batch = current()
        with caused_by(first) as trace:
            assert (trace.correlation_id, traceparent_of()) == (f"of-{first}", PARENT)
        with caused_by(second) as trace:
            assert (trace.correlation_id, traceparent_of()) == (f"of-{second}", None)
        with caused_by(unknown) as trace:
            assert trace == Trace(batch.correlation_id, str(unknown))
        assert (current(), traceparent_of()) == (batch, None)


class App:
    """Answers 202 and keeps the trace under which it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.traces: list[Trace] = []
        self.carriers: list[dict[str, str]] = []
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.traces.append(current())
        self.carriers.append(carrier_of())
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
    assert answer.headers["x-correlation-id"] == "correlation-1"


async def test_a_request_without_a_trace_gets_a_new_one() -> None:
    app = App()
    answer = await request(app)

    assert answer.headers["x-correlation-id"] == app.traces[0].correlation_id
    assert len(app.traces[0].correlation_id) == 36
    assert app.carriers == [{}]


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


@pytest.mark.parametrize("path", ["/metrics-of-sales", "/health/insurances"])
async def test_paths_like_those_of_probes_are_logged(path: str) -> None:
    with capture_logs() as logs:
        await request(App(), path)

    assert request_line(logs)["path"] == path


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


@pytest.mark.parametrize("parent", [PARENT, UNSAMPLED])
async def test_the_callers_context_is_passed_on(parent: str) -> None:
    app = App()
    await request(app, traceparent=parent, tracestate=STATE)

    assert app.carriers == [{"traceparent": parent, "tracestate": STATE}]
    assert carrier_of() == {}


async def test_a_malformed_context_of_a_caller_is_dropped() -> None:
    app = App()
    await request(app, traceparent=PARENT[:-1], tracestate=STATE)

    assert app.carriers == [{}]
