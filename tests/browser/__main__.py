"""Render a service with every module, and look at its pages in a real browser.

python -m tests.browser PATH [pytest options]
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tests import rendering
from tests.shell import environment

HERE = Path(__file__).parent
SERVERS = "KAFKA_|DATABASE_|SERVICE_NAME|OUTBOX_"
# It drives the Chromium of the system, and downloads no browser of its own.
DRIVER = "playwright>=1.65,<2"


def main(path: str, *options: str) -> int:
    service = Path(path).resolve()
    template = service.with_name("template")
    for folder in [template, service]:
        shutil.rmtree(folder, ignore_errors=True)
    modules = ["outbox", "cqrs", "event_sourcing"]
    rendering.render(rendering.snapshot(template), service, {"modules": modules})
    shutil.copy(HERE / "test_pages.py", service / "tests" / "test_pages.py")
    run = ("uv", "run", "--quiet", "--no-python-downloads", "--python", sys.executable)
    tests = "tests/test_pages.py"
    for command in [("mypy", tests), ("pytest", tests, "-v", *options)]:
        whole = (*run, "--with", DRIVER, "python", "-m", *command)
        done = subprocess.run(whole, cwd=service, env=environment(SERVERS), check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
