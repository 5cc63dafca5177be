"""The service's documentation is true."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.generated.conftest import Service

LIST_SETTINGS = Path(__file__).with_name("list_settings.py")
LIST_METRICS = Path(__file__).with_name("list_metrics.py")
CHECK_COMMANDS = Path(__file__).with_name("check_commands.py")


@pytest.fixture(scope="module")
def settings(service: Service) -> dict[str, Any]:
    collected: dict[str, Any] = json.loads(service.run("python", "-P", str(LIST_SETTINGS)))
    return collected


def test_the_example_lists_every_setting_with_its_default(
    service: Service, settings: dict[str, Any]
) -> None:
    example = (service.path / ".env.example").read_text()
    listed = dict(re.findall(r"^# ([A-Z][A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert listed == settings["defaults"]


def test_every_setting_is_read_before_anything_starts(settings: dict[str, Any]) -> None:
    """So a wrong one ends the start with a line, as .env.example says."""
    assert settings["late"] == []


def test_the_readme_names_no_setting_that_is_not_there(
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


def test_the_readme_names_no_command_that_is_not_there(service: Service) -> None:
    readme = (service.path / "README.md").read_text()
    commands = set(re.findall(r"^\| `app ((?:[a-z]+ ?)+)", readme, re.MULTILINE))
    assert commands
    unknown = service.run("python", "-P", str(CHECK_COMMANDS), *sorted(commands))
    assert unknown == ""


def test_the_readme_names_no_path_that_is_not_there(service: Service) -> None:
    readme = (service.path / "README.md").read_text()
    named = set(re.findall(r"^\| `((?:app|tests|migrations|docs)[\w./-]*)`", readme, re.MULTILINE))
    assert named
    assert [path for path in sorted(named) if not (service.path / path).exists()] == []


def test_messages_are_as_the_asyncapi_document_says(service: Service, tmp_path: Path) -> None:
    """The golden sample of each event's newest version, against the schema of its payload."""
    document = json.loads(service.run("app", "asyncapi"))
    messages = [m for c in document["channels"].values() for m in c["messages"].values()]
    assert messages
    for message in messages:
        name, version = message["title"].split(" ")
        kept = json.loads((service.path / "tests" / "events" / f"{name}.json").read_text())
        schema, sample = tmp_path / "schema.json", tmp_path / "sample.json"
        schema.write_text(json.dumps(message["payload"] | {"components": document["components"]}))
        sample.write_text(json.dumps(kept[version]["sample"]))
        assert output(schema, sample) == 0, f"{name}: its sample does not follow its schema"
        sample.write_text(json.dumps(kept[version]["sample"] | {"event_id": None}))
        assert output(schema, sample) == 1, f"{name}: its schema takes anything"


def output(schema: Path, sample: Path) -> int:
    command = (sys.executable, "-m", "check_jsonschema", "--schemafile", str(schema), str(sample))
    return subprocess.run(command, capture_output=True, check=False).returncode
