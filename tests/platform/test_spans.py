"""Spans: when they are made, whose children they are, and what they say."""

import asyncio
import cProfile
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from opentelemetry import baggage, propagate
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from spans import Spans
from sqlalchemy import Engine, column, create_engine, insert, table, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from starlette.types import Message, Receive, Scope, Send

from app.platform import tracing
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.statements import trace_statements
from app.platform.errors import NotFound, Unavailable
from app.platform.http import health_routes, problems
from app.platform.http.boundary import RequestBoundary
from app.platform.http.tracing import TracingMiddleware
from app.platform.kafka import metrics
from app.platform.metrics import LabelledHistogram
from app.platform.span_export import LinkedSampler
from app.platform.tracing import (
    Trace,
    begin_span,
    bind_trace,
    carrier_of,
    context_of_traceparent,
    is_recorded,
    is_sampled,
    is_unsampled,
    link_of,
    span,
    traceparent_of,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


def parent_id(made: ReadableSpan) -> int | None:
    return None if made.parent is None else made.parent.span_id


def attributes(made: ReadableSpan) -> dict[str, Any]:
    return dict(made.attributes or {})


# Off


def test_without_tracing_no_span_is_made() -> None:
    with span("work") as made:
        assert made is INVALID_SPAN
        assert get_current_span() is INVALID_SPAN
    assert begin_span("work") is None
    assert not is_sampled(context_of_traceparent(PARENT))


def test_without_tracing_attributes_are_not_computed() -> None:
    def compute() -> dict[str, str]:
        raise AssertionError("nobody needs them")

    with span("work", attributes=compute):
        pass


def test_without_tracing_the_parent_is_passed_on() -> None:
    with span("work", parent=context_of_traceparent(PARENT)):
        assert traceparent_of() == PARENT
    assert traceparent_of() is None


# On


def test_a_span_is_the_child_of_the_current_one(spans: Spans) -> None:
    with span("outer"), span("inner", SpanKind.PRODUCER):
        pass

    inner, outer = spans.finished()
    assert (inner.name, inner.kind) == ("inner", SpanKind.PRODUCER)
    assert parent_id(outer) is None
    assert parent_id(inner) == outer.context.span_id
    assert get_current_span() is INVALID_SPAN


def test_a_given_parent_replaces_the_current_span(spans: Spans) -> None:
    with span("outer"):
        with span("elsewhere", parent=context_of_traceparent(PARENT)):
            pass
        with span("root", parent=Context()):
            pass

    elsewhere, root, outer = spans.finished()
    assert format_trace_id(elsewhere.context.trace_id) == TRACE_ID
    assert parent_id(root) is None
    assert root.context.trace_id != outer.context.trace_id


def test_an_exception_is_recorded_and_marks_the_span(spans: Spans) -> None:
    with pytest.raises(ValueError, match="broken"), span("work"):
        raise ValueError("broken")

    made = spans.named("work")
    assert made.status.status_code is StatusCode.ERROR
    assert attributes(made)["error.type"] == "ValueError"
    (event,) = made.events
    assert dict(event.attributes or {})["exception.message"] == "broken"


async def test_a_cancelled_span_ends_without_an_error(spans: Spans) -> None:
    async def work() -> None:
        with span("work"):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert spans.named("work").status.status_code is StatusCode.UNSET


def test_a_span_has_the_ids_of_the_work(spans: Spans) -> None:
    with (
        bind_trace(Trace("c-1", "e-1", command_id="k-1", actor="ada")),
        span("work", attributes=lambda: {"own": 1}),
    ):
        pass

    assert attributes(spans.named("work")) == {
        "own": 1,
        "app.correlation_id": "c-1",
        "app.causation_id": "e-1",
        "app.command_id": "k-1",
        "app.actor": "ada",
    }


def test_a_begun_span_ends_when_the_caller_says_so(spans: Spans) -> None:
    begun = begin_span("send", SpanKind.PRODUCER, parent=context_of_traceparent(PARENT))
    assert begun is not None
    assert get_current_span() is INVALID_SPAN
    assert spans.finished() == []
    begun.end()

    assert format_trace_id(spans.named("send").context.trace_id) == TRACE_ID


def test_an_unsampled_trace_stays_unsampled(spans: Spans) -> None:
    parent = context_of_traceparent(UNSAMPLED)
    with span("work", parent=parent):
        assert traceparent_of() == UNSAMPLED
        with span("inner"):
            assert traceparent_of() == UNSAMPLED
        assert begin_span("send") is None
    assert begin_span("send", parent=parent) is None
    assert not is_sampled(parent)
    assert spans.finished() == []


def test_no_sampler_outvotes_an_unsampled_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    eager, parent = Spans(), context_of_traceparent(UNSAMPLED)
    with tracing.recording(eager.tracer):
        with span("work", parent=parent):
            pass
        assert begin_span("send", parent=parent) is None
        with span("root"):
            pass

    assert eager.names() == ["root"]


def test_unsampled_work_sends_no_sampled_context(spans: Spans) -> None:
    with tracing.unsampled():
        with span("work"):
            (sent,) = carrier_of().values()
        with span("elsewhere", parent=context_of_traceparent(PARENT)):
            pass
    assert sent.endswith("-00")
    assert spans.names() == ["elsewhere"]


def test_unsampled_work_is_known_as_such(dropping: Spans) -> None:
    unsampled = context_of_traceparent(UNSAMPLED)
    scopes = [tracing.unsampled(), span("dropped"), span("passed on", parent=unsampled)]
    assert (is_recorded(), is_unsampled()) == (False, False)
    for scope in scopes:
        with scope:
            assert (is_recorded(), is_unsampled()) == (False, True)
        assert (is_recorded(), is_unsampled()) == (False, False)


def test_a_recorded_span_inside_of_unsampled_work_is_found(spans: Spans) -> None:
    recorded = spans.tracer.start_span("recorded", context_of_traceparent(PARENT))
    with tracing.unsampled(), bind_trace(Trace("story"), set_span_in_context(recorded)):
        assert (is_recorded(), is_unsampled()) == (True, False)
        assert (tracing.exemplar() or {})["trace_id"] in PARENT


def test_a_value_beside_an_unsampled_span_does_not_hide_it(spans: Spans) -> None:
    with tracing.unsampled():
        token = attach(baggage.set_baggage("name", "value"))
        assert (is_recorded(), is_unsampled()) == (False, True)
        detach(token)


def test_without_tracing_a_sampled_caller_stays_sampled() -> None:
    with span("work", parent=context_of_traceparent(PARENT)):
        assert (is_recorded(), is_unsampled()) == (False, False)


def test_a_span_may_have_the_ids_of_other_work(spans: Spans) -> None:
    with bind_trace(Trace("batch", command_id="command")):
        begun = begin_span("work", trace=Trace("story", causation_id="event"))
        assert begun is not None
        begun.end()
    assert attributes(spans.named("work")) == {
        "app.correlation_id": "story",
        "app.causation_id": "event",
    }


def linked(flags: int, trace_id: int) -> Link:
    return Link(SpanContext(trace_id, 2, is_remote=True, trace_flags=TraceFlags(flags)))


@pytest.mark.parametrize(
    ("links", "is_kept"),
    [
        ([], False),
        ([linked(0, 1)], False),
        ([linked(0, 1), linked(1, 3)], True),
    ],
)
def test_a_batch_is_sampled_if_a_message_is(links: list[Link], is_kept: bool) -> None:
    sampler = LinkedSampler(ParentBased(TraceIdRatioBased(0)))

    found = sampler.should_sample(None, 7, "batch", links=links)
    assert (found.decision is Decision.RECORD_AND_SAMPLE) is is_kept


def test_a_link_does_not_outvote_a_parent() -> None:
    sampler = LinkedSampler(ParentBased(TraceIdRatioBased(1)))
    parent = context_of_traceparent(UNSAMPLED)

    found = sampler.should_sample(parent, 7, "work", links=[linked(1, 3)])
    assert found.decision is Decision.DROP


def test_a_sampler_that_drops_everything_drops_batches() -> None:
    found = LinkedSampler(ALWAYS_OFF).should_sample(None, 7, "batch", links=[linked(1, 3)])

    assert found.decision is Decision.DROP


def test_a_link_leads_to_the_senders_span() -> None:
    link = link_of(context_of_traceparent(PARENT), {"attempt": 1})

    assert link is not None
    assert format_trace_id(link.context.trace_id) == TRACE_ID
    assert dict(link.attributes or {}) == {"attempt": 1}


# Requests


@pytest.fixture
async def http() -> AsyncIterator[AsyncClient]:
    app = FastAPI(telemetry={"tracing": False})
    problems.install(app)
    app.include_router(health_routes.router)
    app.add_middleware(RequestBoundary)
    app.add_middleware(TracingMiddleware)

    @app.api_route("/orders/{order_id}", methods=["GET", "POST"])
    async def handle(order_id: int) -> dict[str, str]:
        if order_id == 404:
            raise NotFound("order", order_id)
        if order_id == 503:
            raise Unavailable("try again")
        if order_id == 500:
            raise ValueError("broken")
        return carrier_of()

    @app.get("/baggage")
    async def show_baggage() -> dict[str, object]:
        return dict(baggage.get_all())

    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        yield http


async def test_a_request_is_a_server_span(http: AsyncClient, spans: Spans) -> None:
    answer = await http.get("/orders/7?user=ada", headers={"user-agent": "test"})

    made = spans.named("GET /orders/{order_id}")
    assert (made.kind, made.parent, made.status.status_code) == (
        SpanKind.SERVER,
        None,
        StatusCode.UNSET,
    )
    assert attributes(made) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/orders/7",
        "network.protocol.version": "1.1",
        "user_agent.original": "test",
        "http.route": "/orders/{order_id}",
        "http.response.status_code": 200,
        "app.correlation_id": answer.headers["x-correlation-id"],
    }
    trace_id = format_trace_id(made.context.trace_id)
    assert answer.json()["traceparent"].startswith(f"00-{trace_id}-")


async def test_a_request_is_in_its_callers_trace(http: AsyncClient, spans: Spans) -> None:
    headers = {"traceparent": PARENT, "tracestate": "a=1"}
    answer = await http.post("/orders/7", headers=headers)

    made = spans.named("POST /orders/{order_id}")
    assert format_trace_id(made.context.trace_id) == TRACE_ID
    assert parent_id(made) == int("b7ad6b7169203331", 16)
    assert answer.json()["tracestate"] == "a=1"
    assert answer.json()["traceparent"] != PARENT


async def test_baggage_of_a_caller_is_there_and_not_sent(http: AsyncClient, spans: Spans) -> None:
    headers = {"traceparent": PARENT, "baggage": "tenant=a"}

    assert (await http.get("/baggage", headers=headers)).json() == {"tenant": "a"}
    assert (await http.get("/orders/7", headers=headers)).json().keys() == {"traceparent"}


async def test_an_unsampled_request_is_passed_on(http: AsyncClient, spans: Spans) -> None:
    headers = {"traceparent": UNSAMPLED, "tracestate": "a=1"}
    answer = await http.post("/orders/7", headers=headers)

    assert answer.json() == headers
    assert spans.finished() == []


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Spans of a process whose sampler takes no trace that begins here."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    return Spans()


@pytest.fixture
def dropping(dropped: Spans) -> Iterator[Spans]:
    with tracing.recording(dropped.tracer):
        yield dropped


def test_the_context_of_a_dropped_span_is_unsampled(dropping: Spans) -> None:
    with span("work") as made:
        assert get_current_span() is made
        assert made.get_span_context().is_valid
        assert not made.is_recording()
        outer = traceparent_of()
        with span("inner"):
            assert traceparent_of() == outer
        assert begin_span("send") is None

    assert not is_sampled(context_of_traceparent(outer))
    assert get_current_span() is INVALID_SPAN
    assert dropping.finished() == []


async def test_a_dropped_request_is_passed_on(http: AsyncClient, dropping: Spans) -> None:
    answers = [await http.post("/orders/7") for _ in range(2)]

    contexts = [context_of_traceparent(answer.json()["traceparent"]) for answer in answers]
    first, second = [get_current_span(context).get_span_context() for context in contexts]
    assert first.is_valid
    assert first.trace_id != second.trace_id
    assert not any(map(is_sampled, contexts))
    assert dropping.finished() == []


async def test_a_sampled_caller_outvotes_the_sampler(http: AsyncClient, dropping: Spans) -> None:
    await http.post("/orders/7", headers={"traceparent": PARENT})

    assert dropping.names() == ["POST /orders/{order_id}"]


@pytest.mark.parametrize("is_on", [False, True])
async def test_several_headers_of_a_context_are_read(http: AsyncClient, is_on: bool) -> None:
    headers = [("traceparent", UNSAMPLED), ("TraceState", "a=1"), ("tracestate", "b=2")]
    with tracing.recording(Spans().tracer) if is_on else nullcontext():
        answer = await http.post("/orders/7", headers=headers)

    assert answer.json() == {"traceparent": UNSAMPLED, "tracestate": "a=1,b=2"}


class Vendor(TextMapPropagator):
    """A propagator whose header is not in lower case, as that of AWS."""

    @property
    def fields(self) -> set[str]:
        return {"X-Vendor-Trace"}

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        (traceparent,) = getter.get(carrier, "X-Vendor-Trace") or [""]
        return context_of_traceparent(traceparent)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        raise AssertionError("nothing is sent by it")


async def test_a_propagator_of_a_vendor_is_asked(
    http: AsyncClient, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Vendor())
    answer = await http.post("/orders/7", headers={"X-Vendor-Trace": UNSAMPLED})

    assert answer.json() == {"traceparent": UNSAMPLED}


async def test_a_dropped_request_costs_few_calls(dropped: Spans) -> None:
    """Nearly all requests are dropped where one in a hundred is sampled."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def ignore(message: Message) -> None: ...

    app, headers = TracingMiddleware(answer), [(b"host", b"service")]
    scope = {"type": "http", "method": "GET", "path": "/orders/7", "headers": headers}

    async def calls() -> int:
        with cProfile.Profile(builtins=False) as profile:
            for _ in range(100):
                await app(scope, receive, ignore)
        return sum(entry.callcount for entry in profile.getstats()) // 100

    await calls()  # the first request fills caches
    off = await calls()
    with tracing.recording(dropped.tracer):
        await calls()
        assert await calls() - off < 68
    assert dropped.finished() == []


@pytest.mark.parametrize("path", ["/metrics", "/health/live"])
async def test_probes_make_no_spans(http: AsyncClient, spans: Spans, path: str) -> None:
    http._transport.raise_app_exceptions = False  # type: ignore[attr-defined]  # there is no runtime
    await http.get(path)

    assert spans.finished() == []


async def test_an_unknown_path_is_no_name(http: AsyncClient, spans: Spans) -> None:
    await http.get("/orders/7/other")
    await http.request("FROBNICATE", "/orders/7/other")

    assert spans.names() == ["GET", "HTTP"]
    assert attributes(spans.named("HTTP"))["http.request.method_original"] == "FROBNICATE"


@pytest.mark.parametrize(
    ("order", "status", "error"),
    [
        (404, StatusCode.UNSET, None),
        (503, StatusCode.ERROR, "503"),
        (500, StatusCode.ERROR, "ValueError"),
    ],
)
async def test_faults_of_the_server_are_errors(
    http: AsyncClient, spans: Spans, order: int, status: StatusCode, error: str | None
) -> None:
    await http.get(f"/orders/{order}")

    made = spans.named("GET /orders/{order_id}")
    assert attributes(made)["http.response.status_code"] == order
    assert made.status.status_code is status
    assert attributes(made).get("error.type") == error
    assert len(made.events) == (error == "ValueError")


# Statements


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(DatabaseSettings())
    trace_statements(database.engine.sync_engine)
    async with database.engine.connect():
        pass  # the first connection has statements of its own
    yield database
    await database.close()


async def test_a_statement_is_a_client_span(database: Database, spans: Spans) -> None:
    async with database.sessions() as session:
        with span("work"):
            await session.execute(
                text("SELECT CAST(:secret AS text) FROM pg_class"), {"secret": "s3"}
            )

    made = spans.named("SELECT pg_class")
    assert made.kind is SpanKind.CLIENT
    assert parent_id(made) == spans.named("work").context.span_id
    found = attributes(made)
    assert found["db.system.name"] == "postgresql"
    assert found["db.operation.name"] == "SELECT"
    assert found["db.collection.name"] == "pg_class"
    assert "FROM pg_class" in found["db.query.text"]
    assert "s3" not in str(found)


async def test_background_statements_begin_no_trace(database: Database, spans: Spans) -> None:
    async with database.sessions() as session:
        await session.execute(text("SELECT 1"))

    assert spans.finished() == []


async def test_a_failed_statement_is_an_error(database: Database, spans: Spans) -> None:
    async with database.sessions() as session:
        with span("work"), pytest.raises(DBAPIError):
            await session.execute(text("SELECT * FROM missing"))
        await session.rollback()
        with span("more"):
            await session.execute(text("SELECT 1"))

    made = spans.named("SELECT missing")
    assert made.status.status_code is StatusCode.ERROR
    assert attributes(made)["db.response.status_code"] == "42P01"
    assert spans.named("SELECT").status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO people VALUES (CAST(:value AS text))",
        "SELECT CAST(:value AS int) FROM people",
        "SELECT :value + 1",
    ],
)
async def test_errors_of_statements_have_no_values(
    database: Database, spans: Spans, statement: str
) -> None:
    person = {"value": "ada@example.com"}
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE people (email text UNIQUE)"))
        await connection.execute(text("INSERT INTO people VALUES (:value)"), person)
    with pytest.raises(DBAPIError), span("work"):
        async with database.sessions() as session:
            await session.execute(text(statement), person)

    recorded = [made.to_json() for made in spans.finished()]
    assert [len(made.events) for made in spans.finished()] == [1, 1]
    assert "ada@" not in str(recorded)


async def test_a_commit_is_a_span_and_can_fail(database: Database, spans: Spans) -> None:
    async with database.engine.begin() as connection:  # outside of any trace
        await connection.execute(
            text("CREATE TABLE things (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        )
    insert = text("INSERT INTO things VALUES (1)")
    with span("first"):
        async with database.engine.begin() as connection:
            await connection.execute(insert)
    with pytest.raises(IntegrityError), span("second"):
        async with database.engine.begin() as connection:
            await connection.execute(insert)

    committed, failed = [made for made in spans.finished() if made.name == "COMMIT"]
    assert parent_id(committed) == spans.named("first").context.span_id
    assert parent_id(failed) == spans.named("second").context.span_id
    assert attributes(committed)["db.system.name"] == "postgresql"
    statuses = [made.status.status_code for made in (committed, failed)]
    assert statuses == [StatusCode.UNSET, StatusCode.ERROR]


async def test_many_rows_are_one_statement(database: Database, spans: Spans) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TEMPORARY TABLE things (name text)"))
        with span("work"):
            await connection.execute(
                text("INSERT INTO things VALUES (:name)"), [{"name": "x"}] * 500
            )

    assert attributes(spans.named("INSERT things"))["db.operation.batch.size"] == 500


async def test_rows_in_batches_are_a_span_each(database: Database, spans: Spans) -> None:
    things = table("things", column("name"))
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TEMPORARY TABLE things (name text)"))
        with span("work"):
            rows = [{"name": str(number)} for number in range(2_500)]
            await connection.execute(insert(things).returning(things.c.name), rows)

    made = [made for made in spans.finished() if made.name == "INSERT things"]
    assert [parent_id(each) for each in made] == [spans.named("work").context.span_id] * 3


def test_an_untraced_statement_costs_a_look(spans: Spans) -> None:
    """While tracing is on, most statements are in no trace."""

    def calls(engine: Engine) -> int:
        with engine.connect() as connection, cProfile.Profile(builtins=False) as profile:
            for _ in range(100):
                connection.execute(text("SELECT 1"))
        return sum(entry.callcount for entry in profile.getstats()) // 100

    plain, traced = create_engine("sqlite://"), create_engine("sqlite://")
    trace_statements(traced)
    with span("work", parent=context_of_traceparent(UNSAMPLED)):
        cost = calls(traced) - calls(plain)
    plain.dispose()
    traced.dispose()
    assert cost < 12
    assert spans.finished() == []


async def test_a_long_statement_is_cut(database: Database, spans: Spans) -> None:
    async with database.sessions() as session:
        with span("work"):
            await session.execute(text(f"SELECT 1 {'+ 1' * 1_000}"))

    assert len(attributes(spans.named("SELECT"))["db.query.text"]) == 2_000


# Exemplars


def exposed(collector: Any) -> list[str]:
    registry = CollectorRegistry()
    registry.register(collector)
    encode, _ = choose_encoder("application/openmetrics-text")
    return encode(registry).decode().splitlines()


def test_a_latency_leads_to_its_trace(spans: Spans) -> None:
    histogram = LabelledHistogram("work_seconds", "Work", ["kind"], [1, 2])
    histogram.observe(("a",), 0.5, exemplar=tracing.exemplar())
    with span("work"):
        histogram.observe(("a",), 1.5, exemplar=tracing.exemplar())

    trace_id = format_trace_id(spans.named("work").context.trace_id)
    buckets = [line for line in exposed(histogram) if "_bucket" in line]
    assert [("trace_id" in line) for line in buckets] == [False, True, False]
    assert f'le="2.0"}} 2.0 # {{trace_id="{trace_id}"}} 1.5 ' in buckets[1]


def test_unsampled_work_leaves_no_exemplar(spans: Spans) -> None:
    assert tracing.exemplar() is None
    with span("work", parent=context_of_traceparent(UNSAMPLED)):
        assert tracing.exemplar() is None


def test_handlers_leave_exemplars(spans: Spans) -> None:
    with span("process"), metrics.timing_handler("spanned", "thing.made"):
        pass

    trace_id = format_trace_id(spans.named("process").context.trace_id)
    lines = exposed(metrics.handler_time)
    assert any('consumer="spanned"' in line and trace_id in line for line in lines)


async def test_metrics_are_served_as_openmetrics(http: AsyncClient, spans: Spans) -> None:
    await http.get("/orders/7")
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    answer = await http.get("/metrics", headers={"accept": accept})

    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    trace_id = format_trace_id(spans.named("GET /orders/{order_id}").context.trace_id)
    (line,) = [line for line in answer.text.splitlines() if trace_id in line]
    assert line.startswith("http_server_request_duration_seconds_bucket{")


async def test_both_formats_have_the_same_series(http: AsyncClient) -> None:
    await http.get("/metrics")  # a series of its own
    texts = [
        (await http.get("/metrics", headers={"accept": accept})).text
        for accept in ("*/*", "application/openmetrics-text;version=1.0.0")
    ]
    plain, openmetrics = (
        {line.partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
        for text in texts
    )
    assert {name for name in plain ^ openmetrics if "_created" not in name} == set()
