from pathlib import Path

import pytest

from tests.update import releases


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone the template with its released versions, and the working tree as the newest."""
    return releases.history(tmp_path_factory.mktemp("history") / "template")


@pytest.fixture(scope="session")
def next_version(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Add one more version, whose changes the tests know."""
    return releases.next_version(history, tmp_path_factory.mktemp("ahead") / "template")


@pytest.fixture(scope="session", params=releases.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each version that a service may come from."""
    name: str = request.param
    return name
