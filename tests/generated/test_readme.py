"""The code of the service's README runs as it stands."""

import re
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import matrix
from tests.generated.conftest import Service
from tests.generated.workspace import Workspace

BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LIST_TOPICS = """\
from app import SERVICE_NAME, reviews, wiring
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Context
from app.platform.service import Service

service = Service([*wiring.service.components, reviews.component])
context = Context.of(service, SERVICE_NAME, KafkaSettings())
print(*(topic.name for topic in context.topics()), sep="\\n")
"""


def test_the_code_of_the_readme_can_be_plugged_in(base: Service, tmp_path: Path) -> None:
    shutil.copytree(base.path / "app", tmp_path / "app")
    readme = (base.path / "README.md").read_text()
    blocks = [textwrap.dedent(block) for _, block in BLOCK.findall(readme)]
    *first, second_version = blocks
    assert len(first) == 3
    for blocks in (first, [second_version]):
        for block in blocks:
            path = tmp_path / block.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
        topics = base.run("python", "-P", "-c", LIST_TOPICS, settings={"PYTHONPATH": str(tmp_path)})
        (event,) = (topic for topic in topics.split() if topic.endswith(".review.written"))
        assert f"{event}.ratings.dlq" in topics.split()


EXAMPLE = ["users", "posts", "orders"]
DROP_EXAMPLE = """\
import asyncio
import os
import re

from app.platform.database.migrations import create_revision, upgrade
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
    """The smallest service, whose example was removed as its README says."""
    path = workspace.render(matrix.codes()[0], repository, "without-example")
    for name in EXAMPLE:
        shutil.rmtree(path / "app" / name)
        shutil.rmtree(path / "tests" / name)
    for sample in (path / "tests" / "contracts").glob("*.json"):
        sample.unlink()
    line = re.compile(rf".*\b({'|'.join(EXAMPLE)})\b.*\n")
    for name in ("app/wiring.py", "pyproject.toml"):
        file = path / name
        text = file.read_text().replace('["app.users", "app.posts", "app.orders"]', "[]")
        file.write_text(line.sub("", text))
    return Service(
        path,
        "base without the example",
        workspace.shared_environment(path),
        services_folder / "summary",
    )


def test_the_example_can_be_removed(without_example: Service, servers: Mapping[str, str]) -> None:
    service = without_example
    settings = {**servers, "PYTHONPATH": str(service.path)}
    service.run("ruff", "format", "app/wiring.py")  # the list is empty now
    service.run("ruff", "check", ".")
    service.run("ruff", "format", "--check", ".")
    service.run("lint-imports")
    service.run("mypy")
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
    service.report_last_line(
        service.run("pytest", "-q", *tests, settings=servers), "its example removed"
    )
