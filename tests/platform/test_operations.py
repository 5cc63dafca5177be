"""Health, metrics, logs, and the trace that they share."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from app.platform import health as module
from app.platform.health import Health, Unhealthy
from app.platform.http.health_routes import router
from app.platform.http.tracing import TracingMiddleware
from app.platform.kafka import metrics as kafka_metrics
from app.platform.tracing import Trace, bind_trace, child_traceparent, current, trace_from


async def fine() -> None: ...


async def sick() -> None:
    raise Unhealthy("the disk is full")


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def http(health: Health) -> AsyncIterator[AsyncClient]:
    app = FastAPI()
    app.include_router(router)
    app.state.runtime = SimpleNamespace(health=health)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as client:
        yield client


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_without_checks_the_process_is_well(http: AsyncClient, path: str) -> None:
    answer = await http.get(path)

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "checks": {}}


async def test_one_failing_check_makes_the_process_unready_and_says_why(
    http: AsyncClient, health: Health
) -> None:
    health.add_readiness_check("database", fine)
    health.add_readiness_check("disk", sick)
    answer = await http.get("/health/ready")

    assert answer.status_code == 503
    assert answer.json() == {
        "status": "unavailable",
        "checks": {"database": "ok", "disk": "Unhealthy: the disk is full"},
    }


async def test_what_a_process_does_not_need_is_told_and_does_not_count(
    http: AsyncClient, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPTIONAL_CHECK_TIMEOUT_SECONDS", 0.02)

    async def hangs() -> None:
        await asyncio.sleep(60)

    health.add_readiness_check("database", fine)
    health.add_readiness_check("disk", sick, required=False)
    health.add_readiness_check("kafka", hangs, required=False)
    health.add_readiness_check("cache", fine, required=False)
    async with asyncio.timeout(1):
        answer = await http.get("/health/ready")

    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "checks": {
            "database": "ok",
            "disk": "unavailable (not needed by this process): Unhealthy: the disk is full",
            "kafka": "unavailable (not needed by this process): no answer within 0.02 s",
            "cache": "ok",
        },
    }


async def test_a_process_that_is_not_ready_is_still_alive(
    http: AsyncClient, health: Health
) -> None:
    health.add_readiness_check("disk", sick)

    assert (await http.get("/health/live")).status_code == 200


async def test_a_failing_liveness_check_asks_for_a_restart(
    http: AsyncClient, health: Health
) -> None:
    health.add_liveness_check("loop", sick)

    assert (await http.get("/health/live")).status_code == 503
    assert (await http.get("/health/ready")).status_code == 200


async def test_a_check_that_recovers_is_ready_again(http: AsyncClient, health: Health) -> None:
    findings: list[Exception] = [OSError("away")]

    async def check() -> None:
        if findings:
            raise findings.pop()

    health.add_readiness_check("database", check)

    assert [(await http.get("/health/ready")).status_code for _ in range(2)] == [503, 200]


async def test_whatever_a_check_raises_is_its_finding(health: Health) -> None:
    async def broken() -> None:
        raise KeyError

    health.add_readiness_check("broken", broken)

    assert (await health.ready()).checks == {"broken": "KeyError"}


async def test_a_check_without_an_answer_holds_nobody_up(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_TIMEOUT_SECONDS", 0.02)

    async def hangs() -> None:
        await asyncio.sleep(60)

    health.add_readiness_check("slow", hangs)
    health.add_readiness_check("quick", fine)
    async with asyncio.timeout(1):
        report = await health.ready()

    assert report.checks == {"slow": "no answer within 0.02 s", "quick": "ok"}


async def test_checks_run_side_by_side(health: Health) -> None:
    both = asyncio.Barrier(2)

    async def meets_the_other() -> None:
        await both.wait()

    health.add_readiness_check("one", meets_the_other)
    health.add_readiness_check("other", meets_the_other)

    assert (await health.ready()).status == "ok"


async def test_metrics_are_given_in_the_format_of_prometheus() -> None:
    kafka_metrics.deliveries.add("shop.meter.read", 0.01)
    app = FastAPI()
    app.include_router(router)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        answer = await http.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'kafka_messages_sent_total{topic="shop.meter.read"}' in answer.text
    assert "# TYPE kafka_message_latency_seconds histogram" in answer.text


def test_deliveries_are_told_as_a_counter_and_a_histogram_would_tell_them() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    deliveries = kafka_metrics.Deliveries()
    ours.register(deliveries)
    sent = Counter(
        "kafka_messages_sent_total", "Messages acknowledged by Kafka", ["topic"], registry=theirs
    )
    latency = Histogram(
        "kafka_message_latency_seconds", "From send to acknowledgement", ["topic"], registry=theirs
    )
    for topic, seconds, messages in [("a", 0.001, 3), ("b", 0.005, 1), ("a", 7.5, 1), ("a", 60, 2)]:
        deliveries.add(topic, seconds, messages)
        for _ in range(messages):
            sent.labels(topic).inc()
            latency.labels(topic).observe(seconds)

    told = generate_latest(theirs).decode().splitlines()
    assert generate_latest(ours).decode().splitlines() == [
        line for line in told if "_created" not in line
    ]


PROGRAM = """
import logging, sys
import structlog
from app.platform import logs
from app.platform.tracing import Trace, bind_trace

def fail():
    password = "hunter" + "2"
    raise ValueError("broken")

logs.configure(*sys.argv[1:])
log = structlog.get_logger("app.shop")
with bind_trace(Trace("story")):
    log.info("order placed", order=7)
    logging.getLogger("library").warning("careful with %s", "this")
    try:
        fail()
    except ValueError:
        log.exception("request failed")
log.info("outside")
log.info("odd", text="\\ud800", raw=b"\\xff", thing=object)
log.debug("detail")
logging.getLogger("aiokafka.conn").error("retrying")
logging.getLogger("uvicorn.access").info("GET /")
"""


def output(level: str, log_format: str, terminal: bool = False) -> str:
    command = [sys.executable, "-c", PROGRAM, level, log_format]
    if not terminal:
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
        assert done.stdout == b""
        return done.stderr.decode()
    main, child = os.openpty()
    try:
        subprocess.run(command, stderr=child, check=True, timeout=30)
        return os.read(main, 100_000).decode()
    finally:
        os.close(main)
        os.close(child)


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """Return what goes to a pipe, with the format that fits."""
    return [json.loads(line) for line in output("INFO", "auto").splitlines()]


@pytest.fixture(scope="module")
def pretty() -> str:
    return output("INFO", "pretty")


def line_of(lines: list[dict[str, Any]], message: str) -> dict[str, Any]:
    (line,) = [line for line in lines if line["message"] == message]
    return line


def test_a_line_is_one_json_object_with_the_correlation_id(lines: list[dict[str, Any]]) -> None:
    line = line_of(lines, "order placed")

    assert line["correlation_id"] == "story"
    assert line["order"] == 7
    assert line["level"] == "info"
    assert line["logger"] == "app.shop"
    assert line["timestamp"].endswith("Z")


def test_libraries_log_in_the_same_format(lines: list[dict[str, Any]]) -> None:
    line = line_of(lines, "careful with this")

    assert (line["logger"], line["level"]) == ("library", "warning")
    assert line["correlation_id"] == "story"


def test_work_outside_of_a_story_has_no_correlation_id(lines: list[dict[str, Any]]) -> None:
    assert "correlation_id" not in line_of(lines, "outside")


def test_an_exception_is_in_its_line(lines: list[dict[str, Any]]) -> None:
    (exception,) = line_of(lines, "request failed")["exception"]

    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "broken")
    assert exception["frames"][-1]["name"] == "fail"


def test_local_variables_are_not_logged(lines: list[dict[str, Any]], pretty: str) -> None:
    assert "hunter2" not in json.dumps(lines)
    assert "hunter2" not in pretty


def test_what_json_does_not_have_is_still_logged(lines: list[dict[str, Any]]) -> None:
    line = line_of(lines, "odd")

    assert line["text"] == "\ud800"
    assert "xff" in line["raw"]


def test_details_and_chatter_of_clients_are_left_out(
    lines: list[dict[str, Any]], pretty: str
) -> None:
    messages = {line["message"] for line in lines}

    assert messages == {"order placed", "careful with this", "request failed", "outside", "odd"}
    for left_out in ("detail", "retrying", "GET /"):
        assert left_out not in pretty


def test_pretty_is_for_people(pretty: str) -> None:
    (line,) = [line for line in pretty.splitlines() if "order placed" in line]

    assert "correlation_id=story" in line
    assert "order=7" in line
    assert not line.startswith("{")
    assert "\x1b" not in line  # no colours into a file
    assert "ValueError: broken" in pretty


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo terminals")
def test_on_a_terminal_logs_are_pretty_with_details_when_asked_for() -> None:
    seen = output("DEBUG", "auto", terminal=True)

    assert "order placed" in seen
    assert "detail" in seen
    assert '"message"' not in seen


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_work_without_a_trace_begins_one() -> None:
    assert current().correlation_id != current().correlation_id


def test_work_in_a_block_belongs_to_its_trace() -> None:
    outer, inner = Trace("outer"), Trace("inner")
    with bind_trace(outer):
        with bind_trace(inner):
            assert current() is inner
        assert current() is outer
    assert current() is not outer


def test_a_block_that_fails_ends_its_trace() -> None:
    with pytest.raises(ValueError, match="broken"), bind_trace(Trace("story")):
        raise ValueError("broken")

    assert current().correlation_id != "story"
    assert structlog.contextvars.get_contextvars() == {}


def test_the_log_lines_of_a_block_have_its_correlation_id() -> None:
    with bind_trace(Trace("story")):
        assert structlog.contextvars.get_contextvars() == {"correlation_id": "story"}


async def test_traces_of_tasks_side_by_side_do_not_mix() -> None:
    async def work(name: str) -> str:
        with bind_trace(Trace(name)):
            await asyncio.sleep(0)
            return current().correlation_id

    assert await asyncio.gather(*map(work, "abc")) == ["a", "b", "c"]


@pytest.mark.parametrize("given", ["story", "6f1c9a3e-3f0b-4c55", "a/b+c=d:e.f_g", "x" * 128])
def test_a_good_correlation_id_is_kept(given: str) -> None:
    assert trace_from(given, None).correlation_id == given


@pytest.mark.parametrize(
    "given", [None, "", "a b", "a\nb", "story\n", "<script>", "né", "\x00", "\ud800", "x" * 129]
)
def test_a_correlation_id_that_must_not_reach_the_logs_is_replaced(given: str | None) -> None:
    assert len(trace_from(given, None).correlation_id) == 36


def test_a_child_stays_in_its_trace_with_a_span_of_its_own() -> None:
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
def test_whatever_comes_from_outside_the_trace_is_well_formed(
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


def request_line(logs: list[Any]) -> dict[str, Any]:
    (entry,) = [entry for entry in logs if entry["event"] == "request"]
    return dict(entry)


async def test_each_request_is_one_log_line() -> None:
    with capture_logs() as logs:
        await request(App())

    line = request_line(logs)
    assert (line["method"], line["path"], line["status"]) == ("GET", "/orders", 202)
    assert line["milliseconds"] >= 0


async def test_a_request_that_fails_is_logged_as_one() -> None:
    with capture_logs() as logs, pytest.raises(ValueError, match="broken"):
        await request(App(ValueError("broken")))

    assert request_line(logs)["status"] == 500


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


def test_no_gauge_has_a_value_before_it_is_measured() -> None:
    """An alert on a 0 that nobody measured stays silent."""
    listing = (
        "from prometheus_client import REGISTRY\n"
        "from app.wiring import service\n"
        "from app.platform.http.app import create_app\n"
        "assert service and create_app\n"
        "for metric in REGISTRY.collect():\n"
        "    if metric.type == 'gauge' and not metric.name.startswith(('python_', 'process_')):\n"
        "        print(metric.name, *(sample.name for sample in metric.samples))\n"
    )
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    gauges = [line.split() for line in done.stdout.splitlines()]
    assert "kafka_consumer_lag" in {name for name, *_ in gauges}
    assert [name for name, *samples in gauges if samples] == []
