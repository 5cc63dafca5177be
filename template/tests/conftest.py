"""Fixtures of every test: servers and the service on them (`fixtures`), its parts (`world`)."""

import sys

import pytest
import structlog
from hypothesis import settings

pytest_plugins = ["tests.fixtures", "tests.world"]


# A busy machine is not a fault of the code, and these tests run after every change: for a long
# search, `--hypothesis-profile=default`.
settings.register_profile("quick", deadline=None, max_examples=50)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `unit` each test that needs no server, by its fixtures."""
    for item in items:
        if "servers" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.unit)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unit: needs no server (set for you)")
    if config.getoption("--hypothesis-profile") is None:
        settings.load_profile("quick")
    # structlog's default draws tracebacks that take seconds: consumers would miss their heartbeats.
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        # Not to sys.stdout, which is a command's output while a test runs one.
        logger_factory=structlog.PrintLoggerFactory(sys.__stderr__),
    )
