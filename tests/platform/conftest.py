"""A database for tests of commands, and tracing for tests of spans."""

from collections.abc import Iterator

import pytest
from spans import Spans

from app.platform import tracing
from tests.fixtures import temporary_database


@pytest.fixture
def url(database_server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database, which DATABASE_URL names."""
    with temporary_database(database_server_url) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        yield url


@pytest.fixture
def spans() -> Iterator[Spans]:
    """Tracing is on, and everything is sampled."""
    found = Spans()
    with tracing.recording(found.tracer):
        yield found
    found.provider.shutdown()
