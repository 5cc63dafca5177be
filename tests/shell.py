"""A person's shell, for commands that are run as a person runs them."""

import os
import re

# Nothing of the virtual environment that these tests run in: uv would install into it.
TOOLS = "VIRTUAL_ENV|UV_PROJECT_ENVIRONMENT|PYTHON|PYTEST|COVERAGE|NOX"


def environment(also_without: str = "") -> dict[str, str]:
    """The variables without those whose names begin with what tools, or `also_without`, set."""
    own = re.compile(f"{TOOLS}|{also_without}" if also_without else TOOLS)
    return {name: value for name, value in os.environ.items() if not own.match(name)}
