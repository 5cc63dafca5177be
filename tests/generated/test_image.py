"""The steps of the Dockerfile, one by one, where there is no Docker: only what is sent to the
builder, only what production needs, and `app` as the entry point."""

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests import matrix
from tests.generated.conftest import Service
from tests.generated.workspace import Workspace
from tests.shell import environment

pytestmark = pytest.mark.xdist_group("image")


@pytest.fixture(scope="module")
def image(
    base: Service, workspace: Workspace, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    # Tests of `app dev --reload` edit the files of the base meanwhile.
    rendered = workspace.render(matrix.codes()[0], repository, "image")
    shutil.copy(base.path / "uv.lock", rendered)
    root = tmp_path_factory.mktemp("image") / "service"
    root.mkdir()
    for line in (rendered / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = rendered / line.removeprefix("!")
            if source.is_dir():
                shutil.copytree(source, root / source.name)
            else:
                shutil.copy(source, root)
        elif (root / line).is_dir():  # no pattern: something in what was sent
            shutil.rmtree(root / line)
    options = (
        "--locked",
        "--no-dev",
        "--extra",
        "telemetry",
        "--extra",
        "console",
        "--no-python-downloads",
    )
    sync = ("uv", "sync", "--quiet", *options)
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


def test_the_api_needs_no_development_dependency(image: Path) -> None:
    result = subprocess.run(
        (
            str(image / ".venv" / "bin" / "python"),
            "-c",
            "from app.platform.http.app import create_app; from app.platform.service import Role; "
            "from app.wiring import service; create_app(service, set(Role))",
        ),
        cwd=image,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["dev", "platform"])
def test_development_commands_are_refused_in_one_line(image: Path, command: str) -> None:
    assert not (image / "app" / "platform" / "dev").exists()
    result = app(image, command)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: `app {command}` is for development")
    assert "neither in the image nor in the wheel" in line


def test_the_image_ignores_development_servers(image: Path) -> None:
    (image / ".dev").mkdir()
    try:
        result = app(image, "topics", "list", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    finally:
        (image / ".dev").rmdir()
    assert result.returncode == 1
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_image_has_the_migrations(image: Path) -> None:
    result = app(image, "db", "upgrade", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert result.returncode == 1
    assert "127.0.0.1" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [[], ["api"], ["worker"], ["console"]],
    ids=["default", "api", "worker", "console"],
)
def test_the_health_check_works_for_every_process(
    base: Service, image: Path, command: list[str]
) -> None:
    final_stage = (base.path / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    variables = dict(re.findall(r"(LISTEN_\w+)=(\S+)", final_stage))
    assert variables["LISTEN_HOST"] == "0.0.0.0"
    assert f"EXPOSE {variables['LISTEN_PORT']}" in final_stage
    health, default = (
        json.loads(re.findall(rf"{before}CMD (\[.*\])$", final_stage, re.MULTILINE)[0])
        for before in (r" +", "^")
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = {"LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": str(port)}
    nowhere = {
        "DATABASE_URL": "postgresql://127.0.0.1:1/none",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    }
    settings = environment() | variables | here | nowhere
    programs = image / ".venv" / "bin"
    with subprocess.Popen(
        (programs / "app", *(command or default)), cwd=image, env=settings
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while subprocess.run(
                (programs / health[0], *health[1:]), env=settings, check=False
            ).returncode:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        finally:
            process.terminate()
            process.wait(60)
