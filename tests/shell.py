"""The environment of a shell, for commands that are run as users run them."""

import os
import re

# uv would install into the virtual environment of these tests.
TOOLS = "VIRTUAL_ENV|UV_PROJECT_ENVIRONMENT|PYTHON|PYTEST|COVERAGE|NOX"


def environment(also_without: str = "") -> dict[str, str]:
    """Return the environment without variables that TOOLS or `also_without` match at their start."""
    own = re.compile(f"{TOOLS}|{also_without}" if also_without else TOOLS)
    return {name: value for name, value in os.environ.items() if not own.match(name)}
