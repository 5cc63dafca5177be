"""The sessions of this repository. `nox -l` lists them.

Plain `nox` has to pass before every change, and `nox -s drills` before a release, too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "generated"]

HERE = Path(__file__).parent
SERVICE_PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


@nox.session
def new(session: nox.Session) -> None:
    """Render a service and finish it: nox -s new -- PATH [-d question=answer ...]"""
    if not session.posargs or session.posargs[0].startswith("-"):
        session.error("give the path of the new service: nox -s new -- ../my-service")
    path, *options = session.posargs
    install(session)
    refuse_unknown_questions(session, options)
    destination = (Path(session.invoked_from) / path).resolve()
    # `copier update` needs an absolute source and a commit that exists.
    version = git(session, "rev-parse", "HEAD")
    if git(session, "status", "--porcelain"):
        session.warn("uncommitted changes of the template are left out")
    copy = ("copier", "copy", "--vcs-ref", version)
    session.run(*copy, *options, str(HERE), str(destination))
    session.run("python", "hooks/finish.py", str(destination))


@nox.session
def demo(session: nox.Session) -> None:
    """Render, start, do the round trip, show it, stop (-- --keep leaves it running)."""
    install(session)
    service = Path(session.create_tmp()) / "demo-service"
    session.run("python", "-m", "tests.demo", str(service), *session.posargs)


@nox.session
def first_hour(session: nox.Session) -> None:
    """Do what a new user does in the first hour, and print the time of each step."""
    install(session)
    folder = Path(session.create_tmp()) / "first-hour"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "tests.first_hour", str(folder))


@nox.session
def lint(session: nox.Session) -> None:
    """Lint the template's own Python, the workflows and the Dockerfile."""
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("zizmor", "--offline", "--quiet", ".github/workflows", "template/.github/workflows")
    session.run("hadolint", "template/Dockerfile")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the template's own Python."""
    install(session)
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Test rendering, answers, files and updates (nine minutes)."""
    install(session)
    # Tests that need a rendered service have sessions of their own.
    others = ("generated", "platform", "drills", "debezium", "browser")
    parallel = ("-n", "auto", "--dist", "loadgroup")
    options = session.posargs or [*parallel, *(f"--ignore=tests/{folder}" for folder in others)]
    session.run("pytest", *options)


@nox.session
def generated(session: nox.Session) -> None:
    """Run each variant's checks on the oldest Python, the ends on the newest (-- --variant NAME)."""
    install(session)
    # Two variants side by side: more would wait for each other's servers, and for the deadlines.
    run = ("pytest", "-v", "-n", "2", "--dist", "loadgroup")
    provide_promtool(session)
    if "--service-python" in session.posargs:
        session.run(*run, "tests/generated", *session.posargs)
        return
    everything = ("tests/generated", "--variant", "all")
    checks = ("tests/generated/test_checks.py", "--variant", "ends")
    for python, chosen in zip(oldest_and_newest(session), (everything, checks), strict=False):
        session.run(*run, *chosen, "--service-python", python, *session.posargs)


@nox.session
def variants(session: nox.Session) -> None:
    """Write docs/variants.md from copier.yml."""
    install(session)
    session.run("python", "-m", "tests.matrix", *session.posargs)


@nox.session
def drills(session: nox.Session) -> None:
    """Break a running service from outside (-- -k kill: one; -- --module cqrs)."""
    install(session)
    provide_promtool(session)
    folder = Path(session.create_tmp())
    if session.posargs:
        service = str(folder / "drill-service")
        session.run("python", "-m", "tests.drills", service, *session.posargs)
    else:
        session.run("python", "-m", "tests.drills.lanes", str(folder))


@nox.session
def debezium(session: nox.Session) -> None:
    """Send an outbox by Debezium instead of the relay, as its page says."""
    install(session)
    service = Path(session.create_tmp()) / "debezium-service"
    session.run("python", "-m", "tests.debezium", str(service), *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Use /docs, /asyncapi and the console in the system's Chromium, with all other hosts blocked."""
    install(session)
    service = Path(session.create_tmp()) / "browser-service"
    session.run("python", "-m", "tests.browser", str(service), *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks (-- --area outbox --rounds 5; -- --quick)."""
    install(session)
    work = Path(session.create_tmp()) / "bench"
    session.run("python", "-m", "benchmarks", str(work), *session.posargs)


def install(session: nox.Session) -> None:
    session.install("--quiet", "--group", "dev")


def provide_promtool(session: nox.Session) -> None:
    """Put promtool on the PATH; without it, tests of rules are skipped, or not allowed to be."""
    kept = Path(session.cache_dir) / "promtool"
    required = os.environ.get("REQUIRE_REAL_SERVERS") == "1"
    found = session.run(
        *("python", "-m", "tests.promtool", str(kept)),
        silent=True,
        stderr=sys.stderr,
        success_codes=[0] if required else [0, 1],
    )
    if folder := str(found or "").strip():
        session.env["PATH"] = os.pathsep.join([folder, os.environ["PATH"]])
    else:
        session.warn("without promtool, tests of rules are skipped")


def git(session: nox.Session, *arguments: str) -> str:
    output = session.run("git", *arguments, external=True, silent=True)
    return str(output).strip()


def refuse_unknown_questions(session: nox.Session, options: list[str]) -> None:
    # Copier silently drops an answer to an unknown question.
    questions = set(re.findall(r"^([a-z]\w*):$", (HERE / "copier.yml").read_text(), re.MULTILINE))
    given = re.findall(r"(?:^| )(?:-d|--data)[ =]?(\w+)=", " ".join(options))
    if unknown := set(given) - questions:
        asked = ", ".join(sorted(questions))
        session.error(f"no question is called {', '.join(sorted(unknown))}; there are: {asked}")


def oldest_and_newest(session: nox.Session) -> list[str]:
    """Return the oldest and the newest supported Python that is installed."""
    # pyenv keeps what is not its current version behind shims that fail.
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = [str(path) for path in pyenv.glob("versions/*/bin")]
    listed = session.run(
        *("uv", "python", "list", "--only-installed", "--output-format", "json"),
        silent=True,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.pathsep.join([os.environ["PATH"], *kept])},
    )
    paths: dict[str, str] = {}
    for python in json.loads(str(listed)):
        version = "{major}.{minor}".format(**python["version_parts"])
        if python["implementation"] == "cpython" and python["variant"] == "default":
            paths.setdefault(version, python["path"])
    found = [version for version in SERVICE_PYTHONS if version in paths]
    if not found:
        session.error(f"none of Python {', '.join(SERVICE_PYTHONS)} is installed")
    return [paths[version] for version in dict.fromkeys([found[0], found[-1]])]
