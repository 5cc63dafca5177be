"""A database for tests of commands."""

from collections.abc import Iterator

import pytest

from tests.fixtures import temporary_database


@pytest.fixture
def url(database_server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty database, which DATABASE_URL names."""
    with temporary_database(database_server_url) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        yield url
