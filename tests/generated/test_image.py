"""What the Dockerfile does, step by step, where there is no Docker: only what is sent to the
builder, only what production needs, and `app` as the entry point."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.generated.conftest import Service
from tests.shell import environment

pytestmark = pytest.mark.xdist_group("image")


@pytest.fixture(scope="module")
def image(base: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image") / "service"
    root.mkdir()
    for line in (base.path / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = base.path / line.removeprefix("!")
            if source.is_dir():
                shutil.copytree(source, root / source.name)
            else:
                shutil.copy(source, root)
    sync = ("uv", "sync", "--quiet", "--locked", "--no-dev", "--no-python-downloads")
    for arguments in ((*sync, "--no-install-project"), sync):
        subprocess.run(arguments, cwd=root, env=environment(), check=True)
    return root


def app(image: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (str(image / ".venv" / "bin" / "app"), *arguments),
        cwd=image,
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_line_needs_no_development_dependency(image: Path) -> None:
    result = app(image, "--help")
    assert result.returncode == 0, result.stderr
    assert "worker" in result.stdout


def test_the_api_can_be_constructed_without_development_dependencies(image: Path) -> None:
    result = subprocess.run(
        (
            str(image / ".venv" / "bin" / "python"),
            "-c",
            "from app.main import create_app; from app.runtime import Role; create_app(set(Role))",
        ),
        cwd=image,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_a_missing_development_dependency_is_one_clear_line(image: Path) -> None:
    result = app(image, "dev")
    assert result.returncode != 0
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "uv sync" in result.stderr


def test_the_migrations_are_part_of_the_image(image: Path) -> None:
    result = app(image, "db", "upgrade", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert result.returncode == 1
    assert "127.0.0.1" in result.stderr
    assert "Traceback" not in result.stderr
