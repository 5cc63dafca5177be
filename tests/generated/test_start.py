"""The README's first commands, where Python is externally managed, as on Debian and Ubuntu.

The home is empty, and the folder has spaces and umlauts in its path.
"""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from shutil import which

import pytest

from tests import rendering, shell
from tests.first_hour import FirstHour, commands

# How packages are found here; and their caches, so that they are not downloaded again.
KEPT = re.compile(r"(PIP|UV|SSL|REQUESTS)_|.*_PROXY$|.*_proxy$|REQUIRE_REAL_SERVERS$")
SECONDS = 300

pytestmark = pytest.mark.xdist_group("start")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a `python3` that is marked as externally managed, of the standard library here."""
    prefix = tmp_path_factory.mktemp("system")
    stdlib = Path(sysconfig.get_path("stdlib"))
    marked = prefix / "lib" / stdlib.name
    marked.mkdir(parents=True)
    for entry in stdlib.iterdir():
        (marked / entry.name).symlink_to(entry)
    if not (marked / "EXTERNALLY-MANAGED").exists():
        (marked / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=Use a venv.\n")
    program = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    python = prefix / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONHOME="{prefix}" exec "{program}" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def settings(python: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of a new user's shell."""
    cache = subprocess.run(("uv", "cache", "dir"), capture_output=True, text=True, check=True)
    (tmp_path / "home").mkdir()
    return {
        **{name: value for name, value in shell.environment().items() if KEPT.match(name)},
        "UV_CACHE_DIR": cache.stdout.strip(),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "HOME": str(tmp_path / "home"),
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }


@pytest.fixture
def uv(settings: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same shell with `uv` installed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("uv", "uvx"):
        found = which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    return {**settings, "PATH": f"{programs}:{settings['PATH']}"}


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    clone = tmp_path / "Größe und Übermut" / "clone"
    rendering.git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    return clone


def run(command: str, folder: Path, settings: Mapping[str, str]) -> str:
    return shell.run(("bash", "-c", command), folder, settings, SECONDS)


def test_pip_alone_is_refused(clone: Path, settings: Mapping[str, str]) -> None:
    with pytest.raises(AssertionError, match="externally-managed-environment"):
        run("python3 -m pip install copier", clone, settings)


def test_the_first_hour(clone: Path, settings: Mapping[str, str], services_folder: Path) -> None:
    hour = FirstHour(clone, settings)
    hour.record()
    with (services_folder / "summary").open("a") as summary:
        summary.write(f"{hour.table()}\n")
    assert [path.name for path in Path(settings["HOME"]).iterdir()] == []


def test_with_uv_the_short_command_is_enough(clone: Path, uv: Mapping[str, str]) -> None:
    _, command, *_ = commands("Start a service")
    assert command.endswith("&& uv run app dev")
    assert "Usage" in run(command.removesuffix("dev") + "--help", clone, uv)


def test_the_test_command_finds_its_sessions(clone: Path, settings: Mapping[str, str]) -> None:
    command, *_ = commands("Test the template")
    assert command.endswith("&& nox")
    assert "generated" in run(f"{command} -l", clone, settings)
