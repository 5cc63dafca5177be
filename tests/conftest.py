import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import rendering
from tests.matrix import Variant

Rendered = Callable[[Variant], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--service-python",
        default=f"{sys.version_info.major}.{sys.version_info.minor}",
        help="the Python of the rendered service: a version, or the path of an interpreter",
    )
    parser.addoption(
        "--variant",
        default="all",
        help="which code of docs/variants.md: the name of one, all of them, or the ends",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Fail if xdist silently ignored the groups of tests that must not run side by side."""
    grouping = node.config.getoption("dist") == "loadgroup"
    if grouping and ids and not any("@" in nodeid.rpartition("]")[2] for nodeid in ids):
        raise pytest.UsageError("no test has its xdist_group: pytest and pytest-xdist do not match")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a git repository whose only version is the working tree."""
    return rendering.snapshot(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def rendered(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Render a variant, once a session. Tests that change a rendering make their own."""
    done: dict[str, Path] = {}

    def render(variant: Variant) -> Path:
        if variant.name not in done:
            destination = tmp_path_factory.mktemp(variant.name) / "my-service"
            done[variant.name] = rendering.render(repository, destination, variant.answers)
        return done[variant.name]

    return render
