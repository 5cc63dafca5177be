from pathlib import Path

import pytest

from tests.update import released


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template with its released versions, and the working tree as the newest."""
    return released.history(tmp_path_factory.mktemp("history") / "template")


@pytest.fixture(scope="session")
def ahead(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one more version, whose changes the tests know."""
    return released.ahead(history, tmp_path_factory.mktemp("ahead") / "template")


@pytest.fixture(scope="session", params=released.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each version that a service may come from."""
    name: str = request.param
    return name
