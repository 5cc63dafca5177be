"""What the service's documentation says about it is so."""

import json
import re
from pathlib import Path

import pytest

from tests.generated.conftest import Service

COLLECT = Path(__file__).with_name("settings_of_service.py")
UNKNOWN = Path(__file__).with_name("unknown_commands.py")


@pytest.fixture(scope="module")
def settings(service: Service) -> dict[str, str]:
    collected: dict[str, str] = json.loads(service.run("python", "-P", str(COLLECT)))
    return collected


def test_the_example_lists_every_setting_with_its_default(
    service: Service, settings: dict[str, str]
) -> None:
    example = (service.path / ".env.example").read_text()
    listed = dict(re.findall(r"^# ([A-Z][A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert listed == settings


def test_the_readme_names_no_setting_that_is_not_there(
    service: Service, settings: dict[str, str]
) -> None:
    readme = (service.path / "README.md").read_text()
    named = set(re.findall(r"^\| `([A-Z][A-Z_]+)`", readme, re.MULTILINE))
    assert named
    assert named <= settings.keys()


def test_the_readme_names_no_command_that_is_not_there(service: Service) -> None:
    readme = (service.path / "README.md").read_text()
    commands = set(re.findall(r"^\| `app ((?:[a-z]+ ?)+)", readme, re.MULTILINE))
    assert commands
    unknown = service.run("python", "-P", str(UNKNOWN), *sorted(commands))
    assert unknown == ""


def test_the_readme_names_no_path_that_is_not_there(service: Service) -> None:
    readme = (service.path / "README.md").read_text()
    named = set(re.findall(r"^\| `((?:app|tests|migrations|docs)[\w./-]*)`", readme, re.MULTILINE))
    assert named
    assert [path for path in sorted(named) if not (service.path / path).exists()] == []
