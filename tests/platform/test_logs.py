"""The formats of log lines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import logging, sys
import structlog
from app.platform import logs
from app.platform.database.pool import CountingPool
from app.platform.tracing import Trace, bind_trace

def fail():
    password = "hunter" + "2"
    raise ValueError("broken")

logs.configure(*sys.argv[1:])
log = structlog.get_logger("app.shop")
with bind_trace(Trace("correlation-1")):
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
logging.getLogger("alembic.runtime.migration").info("Context impl PostgresqlImpl.")
logging.getLogger(f"{CountingPool.__module__}.{CountingPool.__name__}").info("Pool disposed")
"""


def output(level: str, log_format: str, *file: str, terminal: bool = False, **env: str) -> str:
    command = [sys.executable, "-c", PROGRAM, level, log_format, *file]
    if not terminal:
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
        assert done.stdout == b""
        return done.stderr.decode()
    main, child = os.openpty()
    try:
        subprocess.run(command, stderr=child, check=True, timeout=30, env={**os.environ, **env})
        return os.read(main, 100_000).decode()
    finally:
        os.close(main)
        os.close(child)


def test_a_file_has_the_lines_as_json_beside_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    for _ in range(2):
        shown = output("INFO", "pretty", str(file))

    assert "order placed" in shown
    assert not shown.startswith("{")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["message"] for line in lines].count("order placed") == 2, "a run appends"
    assert {line["correlation_id"] for line in lines if "order" in line} == {"correlation-1"}


@pytest.mark.parametrize(("value", "colours"), [("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_no_color_is_set(value: str, colours: bool) -> None:
    shown = output("INFO", "auto", terminal=True, NO_COLOR=value)

    assert "order placed" in shown
    assert ("\x1b[" in shown) is colours


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

    assert line["correlation_id"] == "correlation-1"
    assert line["order"] == 7
    assert line["level"] == "info"
    assert line["logger"] == "app.shop"
    assert line["timestamp"].endswith("Z")


TRACED = """
import structlog
from app.platform import logs
from app.platform.tracing import Trace, bind_trace, context_of_traceparent

resource = {"service_name": "shop", "service_version": "1.2.3"}
logs.configure("INFO", "json", resource=resource)
log = structlog.get_logger("app.shop")
context = context_of_traceparent(f"00-{7:032x}-{9:016x}-01")
with bind_trace(Trace("correlation-1"), context):
    log.info("within")
with bind_trace(Trace("correlation-1"), context_of_traceparent("nonsense")):
    log.info("outside")
"""


def test_a_line_leads_to_its_span_and_its_service() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRACED], capture_output=True, check=True, timeout=30
    )
    within, outside = map(json.loads, done.stderr.splitlines())

    assert (within["trace_id"], within["span_id"]) == (f"{7:032x}", f"{9:016x}")
    assert "trace_id" not in outside
    assert "span_id" not in outside
    for line in (within, outside):
        assert (line["service_name"], line["service_version"]) == ("shop", "1.2.3")


def test_libraries_log_in_the_same_format(lines: list[dict[str, Any]]) -> None:
    line = line_of(lines, "careful with this")

    assert (line["logger"], line["level"]) == ("library", "warning")
    assert line["correlation_id"] == "correlation-1"


def test_work_without_a_trace_has_no_correlation_id(lines: list[dict[str, Any]]) -> None:
    assert "correlation_id" not in line_of(lines, "outside")


def test_an_exception_is_part_of_its_log_line(lines: list[dict[str, Any]]) -> None:
    (exception,) = line_of(lines, "request failed")["exception"]

    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "broken")
    assert exception["frames"][-1]["name"] == "fail"


def test_local_variables_are_not_logged(lines: list[dict[str, Any]], pretty: str) -> None:
    assert "hunter2" not in json.dumps(lines)
    assert "hunter2" not in pretty


def test_values_that_json_lacks_are_logged(lines: list[dict[str, Any]]) -> None:
    line = line_of(lines, "odd")

    assert line["text"] == "\ud800"
    assert "xff" in line["raw"]


def test_debug_lines_and_clients_retries_are_left_out(
    lines: list[dict[str, Any]], pretty: str
) -> None:
    messages = {line["message"] for line in lines}

    assert messages == {"order placed", "careful with this", "request failed", "outside", "odd"}
    for left_out in ("detail", "retrying", "GET /", "Context impl", "Pool disposed"):
        assert left_out not in pretty


def test_the_pretty_format_is_readable(pretty: str) -> None:
    (line,) = [line for line in pretty.splitlines() if "order placed" in line]

    assert "correlation_id=correlation-1" in line
    assert "order=7" in line
    assert not line.startswith("{")
    assert "\x1b" not in line  # no colours into a file
    assert "ValueError: broken" in pretty


def test_on_a_terminal_the_format_is_pretty() -> None:
    seen = output("DEBUG", "auto", terminal=True)

    assert "order placed" in seen
    assert "detail" in seen
    assert '"message"' not in seen
