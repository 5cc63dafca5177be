"""Render a service with the outbox, and run Debezium beside it as its documentation says.

python -m tests.debezium PATH [pytest options]
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tests import rendering
from tests.shell import environment

HERE = Path(__file__).parent
SERVERS = "KAFKA_|DATABASE_|SERVICE_NAME|OUTBOX_"


def main(path: str, *options: str) -> int:
    service = Path(path).resolve()
    template = service.with_name("template")
    for folder in [template, service]:
        shutil.rmtree(folder, ignore_errors=True)
    rendering.render(rendering.snapshot(template), service, {"modules": ["outbox"]})
    ignored = shutil.ignore_patterns("__main__.py", "__pycache__")
    shutil.copytree(HERE, service / "debezium", ignore=ignored)
    sync = ("uv", "sync", "--quiet", "--no-python-downloads", "--python", sys.executable)
    subprocess.run(sync, cwd=service, env=environment(SERVERS), check=True)
    run = ("uv", "run", "--no-sync", "python", "-m")
    for command in [("mypy", "-p", "debezium"), ("pytest", "debezium", "-v", *options)]:
        done = subprocess.run((*run, *command), cwd=service, env=environment(SERVERS), check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
