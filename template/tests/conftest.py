"""Fixtures of every test: `servers` for the embedded servers, `service` for what runs on them."""

import pytest
import structlog

pytest_plugins = ["tests.fixtures.servers", "tests.fixtures.service"]


def pytest_configure(config: pytest.Config) -> None:
    # structlog's default draws tracebacks that take seconds: consumers would miss their heartbeats.
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
