"""The page `/dev/traces` of `app dev`: the last traces, whatever their spans contain."""

import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind
from typer.testing import CliRunner

from app import wiring
from app.__main__ import load_service
from app.platform import tracing
from app.platform.cli import command_line
from app.platform.dev import command
from app.platform.dev.application import create_dev_app
from app.platform.dev.traces_page import TraceBuffer, install
from app.platform.http.app import create_app
from app.platform.service import Role
from app.platform.span_export import build_provider
from app.platform.tracing import context_of_traceparent, link_of, span, traceparent_of

HOSTILE = "/<script>alert('1')</script>/\N{RIGHT-TO-LEFT OVERRIDE}\x1b[2J\"&"


class Page:
    """A service that is traced, and its page."""

    def __init__(self, buffer: TraceBuffer) -> None:
        app = FastAPI()
        install(app, buffer, is_on=True)
        self.http = AsyncClient(transport=ASGITransport(app), base_url="http://service")

    async def get(self, path: str = "/dev/traces", accept: str = "text/html") -> Response:
        return await self.http.get(path, headers={"accept": accept})

    async def traces(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.get(accept="application/json")).json()
        return found


@pytest.fixture
def buffer() -> Iterator[TraceBuffer]:
    buffer = TraceBuffer(traces=3, spans=4)
    provider = build_provider("shop", "1", [], [buffer])
    with tracing.recording(provider.get_tracer("app")):
        yield buffer


@pytest.fixture
async def page(buffer: TraceBuffer) -> AsyncIterator[Page]:
    page = Page(buffer)
    async with page.http:
        yield page


async def test_the_last_traces_are_shown_newest_first(page: Page) -> None:
    for number in range(5):
        with span(f"trace {number}"), span("inner"):
            pass

    assert [trace["name"] for trace in await page.traces()] == ["trace 4", "trace 3", "trace 2"]
    assert re.findall(r">(trace \d)<", (await page.get()).text) == ["trace 4", "trace 3", "trace 2"]


async def test_a_trace_that_goes_on_stays(page: Page) -> None:
    with span("old"):
        old = context_of_traceparent(traceparent_of())
    for number in range(2):
        with span(f"trace {number}"):
            pass
    with span("later", parent=old):
        pass
    with span("newest"):
        pass

    assert [trace["name"] for trace in await page.traces()] == ["newest", "old", "trace 1"]


async def test_spans_stand_below_their_parents(page: Page) -> None:
    with span("root"):
        with span("first"), span("within the first"):
            pass
        with span("second"):
            pass

    (trace,) = await page.traces()
    names = [found["name"] for found in trace["spans"]]
    assert names == ["root", "first", "within the first", "second"]
    by_id = {found["span_id"]: found["name"] for found in trace["spans"]}
    parents = [by_id.get(found["parent_id"]) for found in trace["spans"]]
    assert parents == [None, "root", "first", "root"]
    html = (await page.get(f"/dev/traces/{trace['trace_id']}")).text
    assert re.findall(r"margin-left: (\d+)rem", html) == ["0", "1", "2", "1"]


async def test_a_trace_that_began_elsewhere_is_shown(page: Page) -> None:
    parent = context_of_traceparent(f"00-{7:032x}-{9:016x}-01")
    with span("process", parent=parent):
        pass

    (trace,) = await page.traces()
    assert (trace["trace_id"], trace["spans"][0]["parent_id"]) == (f"{7:032x}", f"{9:016x}")


async def test_a_huge_trace_is_cut(page: Page) -> None:
    with span("root"):
        for number in range(10):
            with span(f"span {number}"):
                pass

    (trace,) = await page.traces()
    assert (len(trace["spans"]), trace["left_out"]) == (4, 7)
    html = (await page.get(f"/dev/traces/{trace['trace_id']}")).text
    assert "and 7 more that were not kept" in html


async def test_hostile_text_is_only_text(page: Page) -> None:
    with (
        pytest.raises(ValueError, match="script"),
        span(HOSTILE, attributes={"url.path": f"{HOSTILE}2", HOSTILE: HOSTILE}),
    ):
        raise ValueError(HOSTILE)

    ((trace_id),) = [trace["trace_id"] for trace in await page.traces()]
    for path in ("/dev/traces", f"/dev/traces/{trace_id}"):
        html = (await page.get(path)).text
        assert "&lt;script&gt;" in html
        assert "<script" not in html
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in html
        assert "\x1b" not in html


async def test_an_error_and_a_link_are_shown(page: Page) -> None:
    with span("cause") as cause:
        pass
    with (
        pytest.raises(ValueError, match="broken"),
        span("effect", parent=Context(), links=[Link(cause.get_span_context())]),
    ):
        raise ValueError("broken")

    effect, before = await page.traces()
    (found,) = effect["spans"]
    assert found["is_error"]
    assert found["links"][0]["trace_id"] == before["trace_id"]
    html = (await page.get(f"/dev/traces/{effect['trace_id']}")).text
    assert "broken" in html
    assert f'<a href="{before["trace_id"]}">' in html
    assert (await page.get(f"/dev/traces/{before['trace_id']}")).status_code == 200


async def test_a_batch_is_found_from_its_messages(page: Page) -> None:
    with span("POST /orders") as request:
        link = Link(request.get_span_context())
    with span("relay batch", parent=Context(), links=[link]):
        pass
    elsewhere = link_of(context_of_traceparent(f"00-{7:032x}-{9:016x}-01"))
    assert elsewhere is not None
    with span("receive stock", parent=Context(), links=[elsewhere]):
        pass

    assert [trace["name"] for trace in await page.traces()] == [
        "receive stock",
        "relay batch",
        "POST /orders",
    ]
    listed = re.findall(r'<a href="traces/\w+">([^<]+)</a>', (await page.get()).text)
    assert listed == ["receive stock", "POST /orders"]
    trace_id = f"{link.context.trace_id:032x}"
    assert ">relay batch</a>" in (await page.get(f"/dev/traces/{trace_id}")).text


async def test_handling_is_shown_with_its_consumer(page: Page) -> None:
    with span("process", SpanKind.CONSUMER, attributes={"app.consumer": "stock"}):
        pass

    ((trace_id),) = [trace["trace_id"] for trace in await page.traces()]
    assert "consumer stock" in (await page.get(f"/dev/traces/{trace_id}")).text


async def test_an_unknown_trace_is_not_found(page: Page) -> None:
    assert (await page.get(f"/dev/traces/{1:032x}")).status_code == 404


async def test_requests_of_pages_are_left_out(page: Page) -> None:
    for path in ("/dev/traces", f"/dev/traces/{7:032x}", "/docs/assets/x.css", "/orders"):
        with span(f"GET {path}", attributes={"url.path": path}):
            pass

    assert [trace["name"] for trace in await page.traces()] == ["GET /orders"]


async def test_everything_on_the_page_of_traces_is_the_services() -> None:
    app = create_dev_app(wiring.service)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        html = (await http.get("/dev/traces")).text
        (icon,) = re.findall(r'<link rel="icon" href="([^"]+)"', html)
        assert (await http.get(f"/dev/{icon}")).status_code == 200

    assert "No traces yet" in html
    assert re.findall(r'(?:src|href)="[a-z]+:', html) == []
    assert "(dev/traces)" in app.description


async def test_other_commands_do_not_serve_the_page_of_traces() -> None:
    app = create_app(wiring.service, set(Role))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        assert (await http.get("/dev/traces")).status_code == 404


async def test_a_page_without_tracing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    app = create_dev_app(wiring.service)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        assert "Tracing is off" in (await http.get("/dev/traces")).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--otlp", "localhost:4318"], "no address of a collector"),
        (["--otlp", "http://localhost:4318", "--servers-only"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_a_collector_that_cannot_be_used_is_refused(options: list[str], message: str) -> None:
    done = CliRunner().invoke(command_line(load_service), ["dev", *options])

    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_the_collector_of_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str | None] = {}
    names = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    for name in names:
        monkeypatch.setenv(name, "none")
    monkeypatch.setattr(command, "run_dev", lambda *_, **__: seen.update(environ(names)))
    done = CliRunner().invoke(
        command_line(load_service), ["dev", "--otlp", "http://localhost:4318/"]
    )

    assert done.exit_code == 0, done.output
    assert seen == dict(zip(names, ("otlp", "http://localhost:4318/v1/traces"), strict=True))


def environ(names: tuple[str, ...]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}
