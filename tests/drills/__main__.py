"""Render the service, make its environment, put the drills into it, and run them there.

python -m tests.drills PATH [--module MODULE] [--without GUARD] [pytest options]

With `--module` the service has that module, and the drills are those in `test_<module>_*.py`; with
several, those of the last one.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import rendering
from tests.drills.guards import GUARDS, must_fail
from tests.shell import environment

HERE = Path(__file__).parent
# Settings that would replace the drills' own.
SERVERS = "KAFKA_|DATABASE_|SERVICE_NAME|DRILL_"
WIRED = """

from app import drill  # noqa: E402

service = drill.wired_into(service)
"""

MODULES = ["outbox", "cqrs", "event_sourcing"]

# What one would wait for in vain: a killed worker's session, which brokers do not allow to be
# shorter unless they are set up for it, as those of the drills are; and a poll that is overdue.
SHORTER = [
    ("app/platform/kafka/settings.py", "Field(15.0, ge=6)", "Field(15.0, ge=1)"),
    (
        "app/platform/kafka/consumer.py",
        '"max_poll_records":',
        '"max_poll_interval_ms": 5000, "max_poll_records":',
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills")
    parser.add_argument("path", type=Path, help="where to render the service")
    names = ["all", *(guard.name for guard in GUARDS)]
    parser.add_argument("--without", choices=names, action="append", default=[])
    parser.add_argument("--module", choices=MODULES, action="append", default=[])
    chosen, options = parser.parse_known_args()
    service = chosen.path.resolve()
    if "event_sourcing" in chosen.module and "outbox" not in chosen.module:
        chosen.module.insert(0, "outbox")  # it publishes through it
    if chosen.without:
        return without(chosen.without, service)
    render(service, chosen.module)
    types = run(service, "mypy", "-p", "drills", "-m", "app.drill", "-m", "app.wiring")
    return types.returncode or drill(service, "-v", "--durations=0", *options).returncode


def without(names: list[str], service: Path) -> int:
    """Take guards away, one at a time; 0 when each drill failed as expected."""
    unnoticed, rendered = 0, None
    for guard in GUARDS:
        if not {"all", guard.name} & set(names):
            continue
        if rendered != guard.modules:
            render(service, guard.modules)
            rendered = guard.modules
        said = must_fail(guard, service, lambda name: drill(service, "-x", "-k", name, read=True))
        confirmed, verdict = guard.verdict(said)
        unnoticed += not confirmed
        print(f"without {guard.name}, {guard.drill} {verdict}", flush=True)
    return int(unnoticed > 0)


def render(service: Path, modules: Sequence[str] = ()) -> None:
    """The service as users get it, with the drills' handlers in place of its own."""
    template = service.with_name("template")
    for folder in [template, service]:
        shutil.rmtree(folder, ignore_errors=True)
    rendering.render(rendering.snapshot(template), service, {"modules": list(modules)})
    code = shutil.ignore_patterns(
        "__main__.py", "guards.py", "lanes.py", "handlers.py", "__pycache__"
    )
    shutil.copytree(HERE, service / "drills", ignore=code)
    for file in (service / "drills").glob("test_*.py"):
        if not is_for(file.name, modules):
            file.unlink()
    shutil.copy(HERE / "handlers.py", service / "app" / "drill.py")
    with (service / "app" / "wiring.py").open("a") as wiring:
        wiring.write(WIRED)
    for change in SHORTER:
        patch(service, *change)
    subprocess.run(
        ("uv", "sync", "--quiet", "--no-python-downloads", "--python", sys.executable),
        cwd=service,
        env=environment(SERVERS),
        check=True,
    )


def is_for(file: str, modules: Sequence[str]) -> bool:
    """Whether `file` has drills that are meant for a service with `modules`.

    Those of the base are run on the base alone: what they are about is the same in every variant.
    """
    if file == "test_service.py":  # the service as it is shipped, whatever is in it
        return True
    owner = next((module for module in MODULES if file.startswith(f"test_{module}")), None)
    return owner == (modules[-1] if modules else None)


def patch(service: Path, file: str, old: str, new: str) -> None:
    """Replace `old` by `new` in a file of the rendered copy. Fails unless it is there, once."""
    text = (service / file).read_text()
    assert text.count(old) == 1, f"{file} does not have exactly one {old!r}"
    (service / file).write_text(text.replace(old, new))


def drill(service: Path, *options: str, read: bool = False) -> subprocess.CompletedProcess[str]:
    return run(service, "pytest", "drills", "-p", "no:randomly", *options, read=read)


def run(service: Path, *command: str, read: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in the service's environment; `read` keeps its output."""
    return subprocess.run(
        ("uv", "run", "--no-sync", "python", "-m", *command),
        cwd=service,
        env=environment(SERVERS),
        stdout=subprocess.PIPE if read else None,
        stderr=subprocess.STDOUT if read else None,
        text=True,
    )


if __name__ == "__main__":
    sys.exit(main())
