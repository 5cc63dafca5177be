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
AXE = "axe-playwright-python>=0.1,<0.2"  # it has axe itself, which runs in the page
FILES = ("browsers.py", "test_pages.py", "test_console_pages.py")


def main(path: str, *options: str) -> int:
    service = Path(path).resolve()
    template = service.with_name("template")
    for folder in [template, service]:
        shutil.rmtree(folder, ignore_errors=True)
    modules = ["outbox", "cqrs", "event_sourcing"]
    rendering.render(rendering.snapshot(template), service, {"modules": modules})
    for name in FILES:
        shutil.copy(HERE / name, service / "tests" / name)
    run = ("uv", "run", "--quiet", "--no-python-downloads", "--python", sys.executable)
    tests = [f"tests/{name}" for name in FILES if name.startswith("test_")]
    for command in [("mypy", *tests), ("pytest", *tests, "-v", "-p", "tests.browsers", *options)]:
        whole = (*run, "--with", DRIVER, "--with", AXE, "python", "-m", *command)
        done = subprocess.run(whole, cwd=service, env=environment(SERVERS), check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
