"""`copier update`, as a user runs it: from a recorded commit, without trust."""

from pathlib import Path

import pytest

from tests import rendering


@pytest.fixture
def service(repository: Path, tmp_path: Path) -> Path:
    """A service under version control, rendered from the first of two versions."""
    template = tmp_path / "template"
    rendering.git(tmp_path, "clone", "--quiet", str(repository), str(template))
    service = rendering.render(template, tmp_path / "service", {"project_name": "Order Service"})
    rendering.git(service, "init", "--quiet", "--initial-branch", "main")
    rendering.commit(service, "Start")
    readme = template / "template" / "README.md.jinja"
    readme.write_text(readme.read_text() + "\nSaid since the second version.\n")
    (template / "template" / "SECURITY.md").write_text("Report to {{ the maintainers }}.\n")
    rendering.commit(template, "Second version", "v0.0.2")
    return service


def update(service: Path) -> None:
    result = rendering.copier("update", "--defaults", cwd=service)
    assert result.returncode == 0, result.stderr


def test_an_untouched_service_becomes_what_a_fresh_copy_is(service: Path, tmp_path: Path) -> None:
    update(service)
    answers = {"project_name": "Order Service"}
    fresh = rendering.render(tmp_path / "template", tmp_path / "fresh", answers)
    assert rendering.files(service) == rendering.files(fresh)
    differing = [
        path
        for path in rendering.files(fresh)
        if (service / path).read_bytes() != (fresh / path).read_bytes()
    ]
    assert differing == []
    assert "_commit: v0.0.2" in (service / ".copier-answers.yml").read_text()


def test_an_edit_survives_an_update(service: Path) -> None:
    about = service / "app" / "about.py"
    about.write_text(about.read_text() + '\nTEAM = "blue"\n')
    rendering.commit(service, "Edit")
    update(service)
    assert 'TEAM = "blue"' in about.read_text()
    assert "Said since the second version." in (service / "README.md").read_text()


def test_a_second_update_changes_nothing(service: Path) -> None:
    update(service)
    rendering.commit(service, "Update")
    update(service)
    assert rendering.git(service, "status", "--porcelain") == ""
