"""`app platform` lists the template's files that a service has changed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import rendering
from tests.update import releases

pytestmark = pytest.mark.xdist_group("platform-changes")

LIST = """
from pathlib import Path
from app.platform.dev.changes import TemplateUnavailable, find_changes
try:
    for path, change in find_changes(Path.cwd()).items():
        print(change, path.as_posix())
except TemplateUnavailable as error:
    print(error)
"""


@pytest.fixture
def service(history: Path, tmp_path: Path) -> Path:
    path = tmp_path / "service"
    rendering.render(history, path, {}, version=releases.WORKING_TREE)
    releases.commit_service(path)
    return path


def listed(service: Path) -> list[str]:
    command = [sys.executable, "-B", "-c", LIST]
    done = subprocess.run(command, cwd=service, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_service_as_rendered_has_changed_nothing(service: Path) -> None:
    assert listed(service) == []


def test_what_was_edited_added_or_deleted_is_listed(service: Path) -> None:
    (service / "app/users/service.py").write_text("# not the platform's\n")
    (service / "app/platform/kafka/ours.py").write_text("")
    (service / "app/platform/tracing.py").unlink()
    edited = service / "app/platform/logs.py"
    edited.write_text(f"{edited.read_text()}\n# by the team\n")
    rendering.commit(service, "The team's work")
    assert listed(service) == [
        "added app/platform/kafka/ours.py",
        "edited app/platform/logs.py",
        "deleted app/platform/tracing.py",
    ]


def test_a_template_that_is_not_there_is_one_line(service: Path) -> None:
    answers = service / ".copier-answers.yml"
    lines = answers.read_text().splitlines()
    elsewhere = [f"_src_path: {service}-gone" if "_src_path" in line else line for line in lines]
    answers.write_text("\n".join(elsewhere) + "\n")
    (message,) = listed(service)
    assert message.startswith("the template cannot be rendered: ")
    answers.unlink()
    assert listed(service) == [
        "there is no .copier-answers.yml here; run this in the service's folder"
    ]
