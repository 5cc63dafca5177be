"""The console: who may see it, who may act, what its pages say of servers and processes."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from browsing import Browser, console_for
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app import wiring
from app.platform.bodies import MASK, format_body
from app.platform.config import ConfigurationError, load
from app.platform.console import app as console_app
from app.platform.console.access import ConsoleSettings, check_host
from app.platform.console.app import opened
from app.platform.console.jobs import Job, Jobs
from app.platform.console.pages import console_of, sparkline
from app.platform.http import server
from app.platform.http.browser import HEADERS
from app.platform.processes import Processes, read_process
from app.platform.runtime import Context
from tests.fixtures import settings_for
from tests.world import run_cli

NOWHERE = "127.0.0.1:9"


def settings(**values: object) -> ConsoleSettings:
    return ConsoleSettings(_env_file=None, **values)  # type: ignore[arg-type]


def browser(of: ConsoleSettings, peer: str = "127.0.0.1") -> Browser:
    """A browser at a console without servers."""
    context = Context.of(wiring.service, "shop", settings_for(NOWHERE, "shop"))
    app = console_for(wiring.service, context, f"postgresql://nobody@{NOWHERE}/nothing", of)

    async def act(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{await console_of(request).form(request)}")

    app.router.routes.append(Route("/act", act, methods=["POST"]))
    return Browser(app, (peer, 50_000))


async def test_servers_that_are_away_are_named() -> None:
    found = browser(settings())
    async with opened(found.app), found.http:
        page = await found.get("/")
    assert page.status == 200
    assert "database DatabaseUnavailable: cannot connect to PostgreSQL" in page.text
    assert "kafka BrokerUnavailable: cannot connect to Kafka" in page.text


async def test_every_answer_has_the_headers_of_security() -> None:
    found = browser(settings())
    async with found.http:
        answers = [await found.http.get(p) for p in ("/nothing", "/static/console.css", "/jobs/1")]
    assert [answer.status_code for answer in answers] == [404, 200, 200]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


async def test_pages_link_relatively() -> None:
    found = browser(settings())
    async with found.http:
        page = await found.get("/jobs/1")
    assert "../" in page.links
    assert [link for link in page.links if link.startswith(("/", "http"))] == []


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil", "", "[::1"]
)
async def test_the_name_of_another_site_is_refused(host: str) -> None:
    found = browser(settings())
    async with found.http:
        page = await found.get("/jobs/1", host=host)
    assert page.status == 403
    assert "CONSOLE_HOSTS" in page.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8003", "10.0.0.7", "ops.test"])
async def test_addresses_and_listed_names_are_admitted(host: str) -> None:
    found = browser(settings(console_hosts="other.test, ops.test"))
    async with found.http:
        assert (await found.get("/jobs/1", host=host)).status == 200


async def test_only_a_trusted_proxy_names_the_user() -> None:
    behind = settings(console_trusted_proxies="10.1.0.0/16", console_user_header="X-User")
    inside, outside = browser(behind, "10.1.2.3"), browser(behind, "10.2.0.1")
    async with inside.http, outside.http:
        page = await inside.get("/jobs/1", host="console.example", **{"X-User": "ann"})
        assert (page.status, "You are ann." in page.text) == (200, True)
        assert (await inside.get("/jobs/1")).status == 403
        assert (await outside.get("/jobs/1", **{"X-User": "ann"})).status == 403
        assert (await outside.get("/health/live")).status == 200


async def test_without_a_proxy_nobody_names_himself() -> None:
    found = browser(settings())
    async with found.http:
        page = await found.get("/jobs/1", **{"X-Forwarded-User": "ann"})
    assert "You are anonymous." in page.text


async def test_a_console_is_read_only_unless_told() -> None:
    found = browser(settings())
    async with found.http:
        await found.get("/jobs/1")
        token = found.http.cookies["console_token"]
        page = await found.post("/act", {"token": token, "x": "1"})
    assert page.status == 403
    assert "CONSOLE_ACTIONS=true" in page.text


@pytest.mark.parametrize("token", ["", "another"])
async def test_a_form_of_another_site_is_refused(token: str) -> None:
    found = browser(settings(console_actions=True))
    async with found.http:
        await found.get("/jobs/1")
        refused = await found.post("/act", {"token": token})
        sent = await found.post("/act", {"token": found.http.cookies["console_token"], "x": "1"})
    assert (refused.status, sent.status, sent.text) == (403, 200, "{'x': '1'}")


async def test_large_and_garbled_forms_are_refused() -> None:
    found = browser(settings(console_actions=True))
    async with found.http:
        await found.get("/jobs/1")
        large = await found.post("/act", {"x": "x" * 1_000_001})
        garbled = await found.http.post("/act", content=b"token=\xff")
    assert (large.status, garbled.status_code) == (413, 403)


async def test_nul_characters_are_refused_before_they_reach_a_server() -> None:
    found = browser(settings(console_actions=True))
    async with found.http:
        asked = await found.get("/story?id=a%00")
        sent = await found.post("/act", {"x": "\0"})
    assert (asked.status, sent.status) == (400, 400)


async def test_a_form_without_a_cookie_is_refused() -> None:
    found = browser(settings(console_actions=True))
    async with found.http:
        assert (await found.post("/act", {"token": ""})).status == 403


def test_the_cookie_stays_on_this_site() -> None:
    async def first() -> str:
        found = browser(settings())
        async with found.http:
            return (await found.get("/jobs/1")).response.headers["set-cookie"]

    cookie = asyncio.run(first())
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie


def test_nobody_acts_from_elsewhere_without_a_proxy() -> None:
    with pytest.raises(ConfigurationError, match="CONSOLE_TRUSTED_PROXIES"):
        check_host("0.0.0.0", settings(console_actions=True))
    for allowed in (settings(), settings(console_actions=True, console_trusted_proxies="::/0")):
        check_host("0.0.0.0", allowed)
    for host in ("127.0.0.1", "localhost", "::1"):
        check_host(host, settings(console_actions=True))


@pytest.mark.parametrize(
    ("name", "value"), [("TRUSTED_PROXIES", "proxy"), ("PROCESSES", "worker:8001")]
)
def test_wrong_lists_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"CONSOLE_{name}", value)
    with pytest.raises(ConfigurationError, match=f"CONSOLE_{name}"):
        load(ConsoleSettings)


@pytest.mark.parametrize(
    ("given", "arguments", "where"),
    [
        ({}, [], ("127.0.0.1", 8003)),
        ({"LISTEN_HOST": "0.0.0.0", "LISTEN_PORT": "8000"}, [], ("127.0.0.1", 8000)),
        ({"CONSOLE_HOST": "::1"}, ["--port", "1"], ("::1", 1)),
        ({"CONSOLE_HOST": "::1"}, ["--host", "localhost"], ("localhost", 8003)),
    ],
)
async def test_the_console_listens_on_loopback_unless_told(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    arguments: list[str],
    where: tuple[str, int],
) -> None:
    served: list[tuple[str, int]] = []
    monkeypatch.setattr(server, "configure_logs", lambda _settings: None)
    monkeypatch.setattr(console_app, "serve_console", lambda _app, *at: served.append(at))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    result = await run_cli("console", *arguments)
    assert (result.exit_code, served) == (0, [where]), result.output


def test_a_process_without_a_console_imports_nothing_of_it() -> None:
    code = """
import sys
from app import wiring
from app.platform.http.app import create_app
from app.platform.service import Role
create_app(wiring.service, set(Role))
print(*[name for name in sys.modules if "console" in name.split(".")[2:] or "jinja2" in name])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


# Bodies


def test_masked_fields_are_hidden_at_every_depth() -> None:
    body = b'{"email": "a@b.c", "lines": [{"email": ["x"], "sku": "s"}]}'
    shown = format_body(body, ["email"])
    assert "a@b.c" not in shown
    assert shown.count(MASK) == 2
    assert '"sku": "s"' in shown
    assert format_body(b"email=a@b.c", ["email"]) == MASK


def test_long_bodies_are_cut() -> None:
    shown = browser(settings()).app.state.console.body(b"x" * 150_000)
    assert shown.endswith("(50000 characters left out)")
    assert len(shown) < 100_100


# Processes

METRICS = """
# TYPE kafka_messages_consumed_total counter
kafka_messages_consumed_total{consumer="profiles",topic="a"} 3
kafka_messages_consumed_total{consumer="profiles",topic="b"} 4
# TYPE kafka_consumer_lag gauge
kafka_consumer_lag{consumer="profiles",topic="a",partition="0"} 5
# TYPE kafka_consumer_paused gauge
kafka_consumer_paused{consumer="profiles",reason="overload"} 1
"""


class Answers(BaseHTTPRequestHandler):
    """A process that is not ready."""

    def do_GET(self) -> None:
        is_ready = self.path == "/health/ready"
        report = '{"status": "unavailable", "checks": {"database": "away"}}'
        body = (report if is_ready else METRICS).encode()
        self.send_response(503 if is_ready else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def process() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def processes(process: str) -> AsyncIterator[Processes]:
    found = Processes([process])
    await found.watch("http://unused")
    yield found
    await found.close()


async def test_a_process_tells_why_it_is_not_ready(processes: Processes) -> None:
    (found,) = processes.latest
    assert (found.status, found.checks) == ("unavailable", {"database": "away"})


async def test_consumers_are_added_up_over_processes(processes: Processes) -> None:
    assert processes.total("kafka_messages_consumed_total", consumer="profiles") == 7
    assert processes.lag("profiles") == 5
    assert processes.lag("unknown") is None
    assert processes.paused("profiles") == ["overload"]
    await processes.ask()
    assert processes.rates("profiles") == [0.0]


def test_processes_are_asked_without_a_proxy(process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{NOWHERE}")
    assert read_process(process).problem is None


def test_a_process_that_is_away_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "refused" in str(read_process(f"http://127.0.0.1:{port}/").problem)


def test_a_sparkline_spans_its_box() -> None:
    assert sparkline([]) == sparkline([1]) == ""
    assert sparkline([0, 5, 10]) == "0.0,23.0 60.0,12.0 120.0,1.0"


# Jobs


async def finished(job: Job) -> Job:
    while job.is_running:
        await asyncio.sleep(0)
    return job


async def test_a_job_that_fails_says_why() -> None:
    jobs = Jobs()

    async def fail(job: Job) -> None:
        job.progress(1, 2)
        raise RuntimeError("refused")

    job = await finished(jobs.start("replay", "ann", fail))
    assert (job.state, job.lines, job.done, job.expected) == ("failed", ["refused"], 1, 2)


async def test_jobs_end_with_their_process() -> None:
    jobs = Jobs()

    async def wait(job: Job) -> None:
        await asyncio.Event().wait()

    job = jobs.start("wait", "ann", wait)
    await asyncio.sleep(0)
    await jobs.close()
    assert job.state == "interrupted"


async def test_the_last_jobs_are_kept() -> None:
    jobs = Jobs()

    async def nothing(job: Job) -> None:
        pass

    started = [jobs.start(str(n), "ann", nothing) for n in range(60)]
    for job in started:
        await finished(job)
    assert [job.title for job in jobs.latest()][:2] == ["59", "58"]
    assert jobs.find(started[0].id) is None
