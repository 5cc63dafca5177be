"""OpenTelemetry's variables switch tracing on, and set it up."""

import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import ClassVar

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_tracer_provider
from structlog.testing import capture_logs

from app import wiring
from app.platform import telemetry, tracing
from app.platform.config import ConfigurationError, TelemetrySettings, load
from app.platform.dev.process import free_port
from app.platform.http.app import create_app
from app.platform.service import Role
from app.platform.tracing import span


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variable of the machine and no .env of the project takes part, and none stays behind."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    for name in before:
        if name.startswith("OTEL_"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def provider() -> TracerProvider | None:
    return telemetry.tracer_provider("shop", load(TelemetrySettings))


def set_variables(**variables: str) -> None:
    os.environ.update(variables)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        {"OTEL_TRACES_SAMPLER": "always_on", "OTEL_SERVICE_NAME": "shop"},
    ],
)
def test_tracing_is_off_unless_it_is_asked_for(variables: dict[str, str]) -> None:
    set_variables(**variables)

    assert provider() is None
    with telemetry.exporting(None):
        assert not tracing.is_on()


def test_an_application_without_tracing_loads_no_sdk() -> None:
    program = (
        "import sys\n"
        "from app.wiring import service\n"
        "from app.platform.http.app import create_app\n"
        "from app.platform.service import Role\n"
        "create_app(service, set(Role))\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "otlp"},
        {"OTEL_TRACES_EXPORTER": " otlp , none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_SDK_DISABLED": "false", "OTEL_TRACES_EXPORTER": "otlp_proto_http"},
    ],
)
def test_tracing_is_on_where_it_is_asked_for(variables: dict[str, str]) -> None:
    set_variables(**variables)
    found = provider()

    assert found is not None
    found.shutdown()


def test_the_env_file_counts(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "OTEL_TRACES_EXPORTER=console\nOTEL_RESOURCE_ATTRIBUTES=team=a\nOTEL_BSP_MAX_QUEUE_SIZE=600\n"
    )
    set_variables(OTEL_RESOURCE_ATTRIBUTES="team=b")
    found = provider()

    assert found is not None
    assert found.resource.attributes["team"] == "b"  # the environment wins
    assert os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] == "600"
    found.shutdown()


def test_a_resource_says_which_process_it_is() -> None:
    set_variables(OTEL_TRACES_EXPORTER="console")
    first, second = provider(), provider()
    assert first is not None
    assert second is not None

    attributes = [found.resource.attributes for found in (first, second)]
    assert {found["service.name"] for found in attributes} == {"shop"}
    assert all(found["service.version"] for found in attributes)
    assert len({found["service.instance.id"] for found in attributes}) == 2
    first.shutdown()
    second.shutdown()


def test_variables_precede_the_names_of_the_service() -> None:
    set_variables(
        OTEL_TRACES_EXPORTER="console",
        OTEL_SERVICE_NAME="other",
        OTEL_RESOURCE_ATTRIBUTES="service.version=7,deployment.environment.name=test",
    )
    found = provider()
    assert found is not None

    attributes = found.resource.attributes
    assert attributes["service.name"] == "other"
    assert attributes["service.version"] == "7"
    assert attributes["deployment.environment.name"] == "test"
    found.shutdown()


def test_the_sampler_is_that_of_the_variables() -> None:
    set_variables(
        OTEL_TRACES_EXPORTER="console",
        OTEL_TRACES_SAMPLER="parentbased_traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0.25",
    )
    found = provider()
    assert found is not None

    assert "TraceIdRatioBased{0.25}" in found.sampler.get_description()
    found.shutdown()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "telegraph"}, "no exporter telegraph is installed"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: pigeon is none of http/protobuf, grpc",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "no exporter otlp_proto_grpc is installed",
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "9"}, "OTEL_BSP_"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_SDK_DISABLED": "perhaps"}, "OTEL_SDK_DISABLED"),
    ],
)
def test_a_wrong_variable_ends_the_start(variables: dict[str, str], message: str) -> None:
    set_variables(**variables)

    with pytest.raises(ConfigurationError, match=message):
        create_app(wiring.service, {Role.API})


def test_a_missing_extra_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "app.platform.span_export", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    set_variables(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")

    with pytest.raises(ConfigurationError, match="install the extra `telemetry`"):
        create_app(wiring.service, {Role.API})


def test_tracing_ends_with_its_block() -> None:
    exporter = InMemorySpanExporter()
    found = telemetry.tracer_provider(
        "shop", load(TelemetrySettings), [SimpleSpanProcessor(exporter)]
    )
    assert found is not None

    with telemetry.exporting(found):
        assert tracing.is_on()
        with span("work"):
            pass
    assert not tracing.is_on()
    assert [made.name for made in exporter.get_finished_spans()] == ["work"]
    assert isinstance(get_tracer_provider(), TracerProvider)


# In a process of its own, because the provider of libraries can be set once.
REQUEST = """
import asyncio
from httpx import ASGITransport, AsyncClient
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from app.platform import telemetry
from app.platform.config import TelemetrySettings, load
from app.platform.http.app import create_app
from app.platform.service import Role
from app.wiring import service

exporter = InMemorySpanExporter()
processors = [SimpleSpanProcessor(exporter)]
provider = telemetry.tracer_provider("shop", load(TelemetrySettings), processors)
app = create_app(service, {Role.API}, tracer_provider=provider)

async def ask():
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        await http.get("/openapi.json")

with telemetry.exporting(provider):
    asyncio.run(ask())
print([span.name for span in exporter.get_finished_spans()])
"""


def test_a_request_has_one_server_span() -> None:
    done = subprocess.run([sys.executable, "-c", REQUEST], capture_output=True, text=True)

    assert done.stdout.splitlines()[-1] == "['GET']", done.stderr


def test_a_silent_collector_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "FLUSH_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        set_variables(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
        found = provider()
        with capture_logs() as logs:
            with telemetry.exporting(found), span("work"):
                pass
            ended = time.monotonic()

    assert [entry["event"] for entry in logs] == ["last spans not sent"]
    assert time.monotonic() - ended < 30


class Collector(http.server.BaseHTTPRequestHandler):
    """A collector that gives the next of its answers to each request, and keeps the bodies."""

    answers: ClassVar[Iterator[int]]
    bodies: ClassVar[list[bytes]]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(next(self.answers))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def collecting(*answers: int) -> Iterator[list[bytes]]:
    """A collector for the processes of the block, as the bodies that it is sent. Its last answer is repeated."""
    Collector.answers, Collector.bodies = chain(answers, repeat(answers[-1])), []
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        set_variables(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        yield Collector.bodies
        server.shutdown()


class Records(logging.Handler):
    """Messages of libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def test_a_failing_collector_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records()  # not caplog, which also sees what is kept from the log
    monkeypatch.setattr(logging.getLogger(), "handlers", [records])
    with collecting(400, 404, 401, 200):
        found = provider()
        assert found is not None
        with capture_logs() as logs, telemetry.exporting(found):
            for _ in range(5):
                with span("work"):
                    pass
                found.force_flush()

    failed, mended = logs
    assert (failed["event"], failed["log_level"]) == ("spans not sent", "warning")
    assert "400" in failed["reason"]
    assert (mended["event"], mended["lost"]) == ("spans sent again", 3)
    assert records.found == []


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_signal_sends_the_last_spans(role: str, tmp_path: Path) -> None:
    port = str(free_port())
    set_variables(
        DATABASE_URL="postgresql://postgres@127.0.0.1:1/none",
        KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1",
        OTEL_BSP_SCHEDULE_DELAY="3600000",
    )
    command = [sys.executable, "-m", "app", role, "--port", port]
    said = tmp_path / "said"
    with (
        collecting(200) as bodies,
        said.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/openapi.json"):
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.1)
            assert bodies == []
        finally:
            process.terminate()
        assert process.wait(60) == 0, said.read_text()

        assert any(b"/openapi.json" in body for body in bodies), said.read_text()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def test_a_command_is_traced_if_it_is_asked_for() -> None:
    with telemetry.for_command():
        assert not tracing.is_on()
    set_variables(OTEL_TRACES_EXPORTER="console")
    with telemetry.for_command():
        assert tracing.is_on()
