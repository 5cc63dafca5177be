"""The service's documentation is true."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from shutil import which
from typing import Any, NoReturn

import pytest

from tests.generated.conftest import Service
from tests.generated.test_checks import check_types
from tests.generated.workspace import Workspace

LIST_SETTINGS = Path(__file__).with_name("list_settings.py")
LIST_METRICS = Path(__file__).with_name("list_metrics.py")
CHECK_COMMANDS = Path(__file__).with_name("check_commands.py")
DESCRIBE_FOREIGN = Path(__file__).with_name("describe_foreign.py")
PARSER = "@asyncapi/parser@3.6.3"
# Prints what the parser says about each of the documents on standard input.
PARSE = """
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";
const said = [];
for (const document of JSON.parse(readFileSync(0, "utf8"))) {
  const { diagnostics } = await new Parser().parse(document);
  said.push(diagnostics.map(({ code, message, path }) => ({ code, message, path })));
}
console.log(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def settings(service: Service) -> dict[str, Any]:
    collected: dict[str, Any] = json.loads(service.run("python", "-P", str(LIST_SETTINGS)))
    return collected


def test_env_example_lists_every_setting_with_its_default(
    service: Service, settings: dict[str, Any]
) -> None:
    example = (service.path / ".env.example").read_text()
    listed = dict(re.findall(r"^# ([A-Z][A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert listed == settings["defaults"]


def test_every_setting_is_read_before_anything_starts(settings: dict[str, Any]) -> None:
    """So an invalid setting ends the start with one line, as .env.example says."""
    assert settings["late"] == []


def test_the_readme_names_existing_settings_only(
    service: Service, settings: dict[str, Any]
) -> None:
    readme = (service.path / "README.md").read_text()
    named = set(re.findall(r"^\| `([A-Z][A-Z_]+)`", readme, re.MULTILINE))
    assert named
    assert named <= settings["defaults"].keys()


def test_the_documentation_names_every_metric(service: Service) -> None:
    collected = service.run("python", "-P", str(LIST_METRICS)).split()
    assert collected
    pages = [page.read_text() for page in (service.path / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"`([a-z_]+)(?:`|\{)", page)}
    assert set(collected) - named == set()


# In a block, a line; elsewhere, what is marked as code.
COMMAND = re.compile(
    r"^ *(?:uv run )?(app [a-z].*?)(?:  .*)?$|`(?:uv run )?(app [a-z][^`|…]*)`", re.MULTILINE
)


def test_every_documented_command_is_valid(service: Service) -> None:
    pages = [service.path / "README.md", *sorted((service.path / "docs").glob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    commands = {" ".join((line or marked).split()) for line, marked in COMMAND.findall(text)}
    assert len(commands) > 20
    unknown = service.run("python", "-P", str(CHECK_COMMANDS), *sorted(commands))
    assert unknown == ""


def test_the_readme_names_existing_paths_only(service: Service) -> None:
    before, found, after = (
        (service.path / "README.md").read_text().partition("\n### To add an entity\n")
    )
    assert found
    readme = before + after.partition("\n### ")[2]  # that section names files that are to be made
    named = set(
        re.findall(r"^\| `((?:app|tests|migrations|docs|ops)[\w./-]*)`", readme, re.MULTILINE)
    )
    assert named
    assert [path for path in sorted(named) if not (service.path / path).exists()] == []


BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
ADDITION = re.compile(r"# (\S+), in addition\n")


@pytest.fixture
def samples(service: Service, tmp_path: Path) -> list[Path]:
    """Write each block of Python in docs/ to a file; an addition follows the file that it names."""
    blocks = [
        textwrap.dedent(block)
        for page in sorted((service.path / "docs").glob("*.md"))
        for _, block in BLOCK.findall(page.read_text())
    ]
    files = [tmp_path / f"sample_{number}.py" for number in range(len(blocks))]
    for file, block in zip(files, blocks, strict=True):
        added_to = ADDITION.match(block)
        before = (service.path / added_to[1]).read_text() if added_to else ""
        file.write_text(before + block)
    return files


@pytest.mark.corners
def test_the_code_of_the_pages_is_complete(
    service: Service, samples: list[Path], workspace: Workspace, mypy_cache: Path
) -> None:
    assert len(samples) >= 2
    for sample in samples:
        service.run("python", str(sample), settings={"PYTHONPATH": str(service.path)})
    check_types(service, workspace, mypy_cache, [str(sample) for sample in samples])


def test_messages_are_as_the_asyncapi_document_says(service: Service, tmp_path: Path) -> None:
    """Check the golden sample of each event's newest version against its payload's schema."""
    document = json.loads(service.run("app", "asyncapi"))
    messages = [m for c in document["channels"].values() for m in c["messages"].values()]
    assert messages
    for message in messages:
        name, version = message["title"].split(" ")
        kept = json.loads((service.path / "tests" / "contracts" / f"{name}.json").read_text())
        schema, sample = tmp_path / "schema.json", tmp_path / "sample.json"
        schema.write_text(json.dumps(message["payload"] | {"components": document["components"]}))
        sample.write_text(json.dumps(kept[version]["sample"]))
        assert output(schema, sample) == 0, f"{name}: its sample does not follow its schema"
        sample.write_text(json.dumps(kept[version]["sample"] | {"event_id": None}))
        assert output(schema, sample) == 1, f"{name}: its schema takes anything"


@pytest.fixture(scope="session")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the official parser for AsyncAPI, and return its folder."""
    folder = tmp_path_factory.mktemp("asyncapi-parser")
    if which("npm") is None:
        skip_if_allowed("npm is not installed; it comes with Node.js")
    install = ("npm", "install", "--no-package-lock", f"--prefix={folder}", PARSER)
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        skip_if_allowed(f"npm cannot install {PARSER}: {done.stdout}{done.stderr}")
    return folder


def skip_if_allowed(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_REAL_SERVERS") == "1":
        pytest.fail(f"{reason} (REQUIRE_REAL_SERVERS=1 forbids to skip this)", pytrace=False)
    pytest.skip(reason)


def test_the_official_parser_has_no_complaint(service: Service, parser: Path) -> None:
    document = json.loads(service.run("app", "asyncapi"))
    assert diagnostics(parser, [document]) == [[]]
    assert diagnostics(parser, [document | {"servers": 1}]) != [[]]


@pytest.mark.corners
def test_the_official_parser_knows_topics_of_others(service: Service, parser: Path) -> None:
    """Check a document for each decoder, with two events on a foreign topic."""
    documents = json.loads(service.run("python", "-P", str(DESCRIBE_FOREIGN)))
    assert diagnostics(parser, documents) == [[]] * len(documents)
    assert len(documents) == 5


def diagnostics(parser: Path, documents: list[Any]) -> Any:
    said = subprocess.run(
        ("node", "--input-type=module", "-e", PARSE),
        cwd=parser,
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(said.stdout)


def output(schema: Path, sample: Path) -> int:
    command = (sys.executable, "-m", "check_jsonschema", "--schemafile", str(schema), str(sample))
    return subprocess.run(command, capture_output=True, check=False).returncode
