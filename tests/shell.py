"""Commands, run as users run them, and the environment of a shell for them."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# uv would install into the virtual environment of these tests.
TOOLS = "VIRTUAL_ENV|UV_PROJECT_ENVIRONMENT|PYTHON|PYTEST|COVERAGE|NOX"


def environment(also_without: str = "") -> dict[str, str]:
    """Return the environment without variables that TOOLS or `also_without` match at their start."""
    own = re.compile(f"{TOOLS}|{also_without}" if also_without else TOOLS)
    return {name: value for name, value in os.environ.items() if not own.match(name)}


def run(command: Sequence[str], folder: Path, settings: Mapping[str, str], seconds: float) -> str:
    """Run a command; return its output and errors. Fails with them unless the command succeeds."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
    return result.stdout
