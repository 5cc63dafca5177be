"""The recipes of the service's README, carried out as they stand."""

import re
import shlex
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import matrix
from tests.generated.conftest import Service
from tests.generated.test_checks import check_types
from tests.generated.workspace import Workspace
from tests.update import releases

BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"`uv run (app .+?)`")
DATABASE = Path(__file__).with_name("service_database.py")


@pytest.fixture(scope="module")
def with_reviews(
    workspace: Workspace, repository: Path, services_folder: Path, servers: Mapping[str, str]
) -> Service:
    """Render the smallest service, with a database."""
    path = workspace.render(matrix.codes()[0], repository, "with-reviews")
    environment = {**workspace.shared_environment(path), **servers}
    summary = services_folder / "summary"
    made = Service(path, "base", environment, summary).run("python", "-P", str(DATABASE), "create")
    settings = {**environment, "DATABASE_URL": made.strip()}
    return Service(path, "base with reviews", settings, summary)


def section(service: Service, title: str) -> str:
    """Return a section of the service's README."""
    _, found, text = (service.path / "README.md").read_text().partition(f"\n### {title}\n")
    assert found
    return text.partition("\n### ")[0]


def write_files(service: Service, text: str) -> None:
    """Write each block of code to the file that its first line names."""
    for block in (textwrap.dedent(block) for _, block in BLOCK.findall(text)):
        name, _, code = block.partition("\n")
        path = service.path / name.removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)


def wire_reviews(service: Service) -> None:
    for file, text in releases.with_own_slice(service.path, "reviews").items():
        file.write_text(text)


def test_an_event_is_added_as_the_readme_says(
    with_reviews: Service, workspace: Workspace, mypy_cache: Path
) -> None:
    service = with_reviews
    recipe = section(service, "To add an event").partition("By hand")[2]
    slice_of_event, new_version = recipe.split("**A new version.**")
    service.run("app", "db", "upgrade")
    write_files(service, slice_of_event)
    wire_reviews(service)
    own_event, _, _ = slice_of_event.partition("**An event of another service**")
    commands = COMMAND.findall(own_event)
    assert len(commands) == 2
    for command in commands:
        service.run(*shlex.split(command))
    assert ".review.written.ratings.dlq" in service.run("app", "topics", "list")
    check(service, workspace, mypy_cache)
    write_files(service, new_version)
    service.run("app", "schemas", "export")
    check(service, workspace, mypy_cache)


def check(service: Service, workspace: Workspace, mypy_cache: Path) -> None:
    service.run("ruff", "check", ".")
    service.run("ruff", "format", "--check", ".")
    service.run("lint-imports")
    check_types(service, workspace, mypy_cache)
    service.report_last_line(service.run("pytest", "-q", "tests/contracts"), "an event added")


EXAMPLE = ["users", "posts", "orders"]
DROP_EXAMPLE = """\
import asyncio
import os
import re

from app.platform.database.migrations import upgrade
from app.platform.database.revisions import create_revision
from tests.fixtures import temporary_database

async def drop(url):
    await upgrade(url)
    written = await create_revision(url, "Drop the example")
    print(written.name, sorted(set(re.findall(r'drop_table\\("(\\w+)"', written.read_text()))))
    await upgrade(url)
    print("left to do:", await create_revision(url, "Nothing"))

with temporary_database(os.environ["DATABASE_URL"]) as url:
    asyncio.run(drop(url))
"""


@pytest.fixture
def without_example(workspace: Workspace, repository: Path, services_folder: Path) -> Service:
    """Render the smallest service, and remove its example as its README says."""
    path = workspace.render(matrix.codes()[0], repository, "without-example")
    for name in EXAMPLE:
        shutil.rmtree(path / "app" / name)
        shutil.rmtree(path / "tests" / name)
    for sample in (path / "tests" / "contracts").glob("*.json"):
        sample.unlink()
    line = re.compile(rf".*\b({'|'.join(EXAMPLE)})\b.*\n")
    for name in ("app/wiring.py", "pyproject.toml"):
        file = path / name
        file.write_text(line.sub("", file.read_text()))
    return Service(
        path,
        "base without the example",
        workspace.shared_environment(path),
        services_folder / "summary",
    )


def test_the_example_is_removed_as_the_readme_says(
    without_example: Service, servers: Mapping[str, str], workspace: Workspace, mypy_cache: Path
) -> None:
    service = without_example
    settings = {**servers, "PYTHONPATH": str(service.path)}
    service.run("ruff", "format", "app/wiring.py")  # the list is empty now
    service.run("ruff", "check", ".")
    service.run("ruff", "format", "--check", ".")
    service.run("lint-imports")
    check_types(service, workspace, mypy_cache)
    output = service.run("python", "-c", DROP_EXAMPLE, settings=settings)
    assert "core_0002_drop_the_example.py" in output
    tables = ["inventory", "order_items", "orders", "posts", "profiles", "users"]
    assert str(tables) in output
    assert "left to do: None" in output
    # The other tests of the platform are the same, and every service runs them.
    tests = (
        "tests/contracts",
        "tests/platform/test_database.py",
        "tests/platform/test_hostile_input.py",
    )
    output = service.run("pytest", "-q", *tests, settings=servers)
    skipped = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    assert [line for line in skipped if not NOTHING_LEFT.search(line)] == []
    service.report_last_line(output, "its example removed")


# The reasons to skip in a service without slices.
NOTHING_LEFT = re.compile("has a route|has a first request|empty parameter set")
