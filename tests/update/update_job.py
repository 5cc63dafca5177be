"""Runs the weekly job of a service's CI against local repositories.

The scripts are those of the workflow and of the GitLab job. Stand-ins are the origin, `uvx`, and the
recorder of merge requests.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import rendering
from tests.rendering import GIT_ENVIRONMENT, ROOT

BRANCH = "template-update"
GITLAB = "https://update:secret@gitlab.example/team/service.git"

UVX = f"""\
#!/bin/sh
test "$1" = "copier>=9.18,<10" || exit 9
shift
exec "{sys.executable}" -m copier "$@"
"""

GH = """\
#!/usr/bin/env python3
import json, os, pathlib, sys
taken = pathlib.Path(os.environ["TAKEN"])
what, given = sys.argv[1:3], sys.argv[3:]
request = json.loads(taken.read_text()) if taken.exists() else None
if what == ["pr", "list"] and request:
    print(7)
if what in (["pr", "create"], ["pr", "edit"]):
    assert (what == ["pr", "create"]) == (request is None), "one request, and no more"
    request = request or {"draft": "--draft" in given, "branch": given[given.index("--head") + 1]}
    request["title"] = given[given.index("--title") + 1]
    request["body"] = pathlib.Path(given[given.index("--body-file") + 1]).read_text()
if what == ["pr", "ready"]:
    request["draft"] = "--undo" in given
if request:
    taken.write_text(json.dumps(request))
"""

# GitLab's treatment of push options.
HOOK = f"""\
#!{sys.executable}
import json, os, pathlib
count = int(os.environ.get("GIT_PUSH_OPTION_COUNT", 0))
options = dict(os.environ[f"GIT_PUSH_OPTION_{{i}}"].partition("=")[::2] for i in range(count))
title = options.get("merge_request.title", "")
request = {{
    "draft": title.startswith("Draft: "),
    "branch": "template-update" if "merge_request.create" in options else None,
    "title": title.removeprefix("Draft: "),
    "body": options.get("merge_request.description", "").replace(chr(92) + "n", chr(10)),
}}
if options:
    pathlib.Path(os.environ["TAKEN"]).write_text(json.dumps(request))
"""


@dataclass(frozen=True)
class UpdateJob:
    """A service at an origin, the template behind it, and the CI that keeps it up to date."""

    folder: Path
    ci: str

    @property
    def template(self) -> Path:
        return self.folder / "template"

    @property
    def service(self) -> Path:
        """The folder in which the team works."""
        return self.folder / "service"

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    @property
    def request(self) -> dict[str, Any] | None:
        """The recorded merge request."""
        taken = self.folder / "taken.json"
        loaded: dict[str, Any] | None = json.loads(taken.read_text()) if taken.exists() else None
        return loaded

    @property
    def pushed(self) -> str:
        """The commit of the branch at the origin, or ""."""
        listed = rendering.git(self.origin, "for-each-ref", f"refs/heads/{BRANCH}")
        return listed.partition(" ")[0]

    def show(self, path: str) -> str:
        return rendering.git(self.origin, "show", f"{BRANCH}:{path}")

    def publish(self, version: str, files: Mapping[str, str | None]) -> None:
        """Release a version of the template; None removes a file."""
        for name, text in files.items():
            path = self.template / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        rendering.commit(self.template, version, version)

    def work(self, files: Mapping[str, str]) -> None:
        """Commit work of the team, and push it to the main branch."""
        for name, text in files.items():
            (self.service / name).write_text(text)
        rendering.commit(self.service, "The team's work")
        rendering.git(self.service, "push", "--quiet", "origin", "main")

    def run(self, own_token: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the weekly job in a fresh clone, as a CI does."""
        checkout = self.folder / "checkout"
        shutil.rmtree(checkout, ignore_errors=True)
        rendering.git(self.folder, "clone", "--quiet", str(self.origin), str(checkout))
        return subprocess.run(
            ("bash", "-e", "-c", script(self.ci)),
            cwd=checkout,
            env={
                **GIT_ENVIRONMENT,
                "PATH": os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]]),
                "TAKEN": str(self.folder / "taken.json"),
                "OWN_TOKEN": str(own_token).lower(),
                "GITHUB_REF_NAME": "main",
                "TEMPLATE_UPDATE_TOKEN": "secret",
                "CI_SERVER_PROTOCOL": "https",
                "CI_SERVER_FQDN": "gitlab.example",
                "CI_PROJECT_PATH": "team/service",
                "CI_DEFAULT_BRANCH": "main",
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"url.{self.origin}.insteadOf",
                "GIT_CONFIG_VALUE_0": GITLAB,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


def script(ci: str) -> str:
    """Return the job's script from the template."""
    template = ROOT / "template"
    if ci == "github":
        workflow = yaml.safe_load((template / ".github" / "workflows" / "update.yml").read_text())
        return str(workflow["jobs"]["update"]["steps"][-1]["run"])
    pipeline = yaml.safe_load((template / ".gitlab-ci.yml").read_text())
    return "\n".join(pipeline["template-update"]["script"])


PROJECT = '[project]\nname = "service"\nversion = "1"\nrequires-python = ">=3.11"\n'
FIRST_VERSION = {
    "copier.yml": "_templates_suffix: .jinja\n",
    "{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}",
    "code.py": "one\n",
    "old.txt": "old\n",
    "pyproject.toml": PROJECT,
}


def set_up(folder: Path, ci: str) -> UpdateJob:
    """Make a service of the first version of a small template, and its origin."""
    job = UpdateJob(folder, ci)
    for name, text in {"uvx": UVX, "gh": GH}.items():
        executable(folder / "bin" / name, text)
    job.template.mkdir()
    rendering.git(job.template, "init", "--quiet", "--initial-branch", "main")
    job.publish("v1.0.0", FIRST_VERSION)
    rendering.render(job.template, job.service, {})
    subprocess.run(("uv", "lock", "--quiet"), cwd=job.service, check=True)
    rendering.git(job.service, "init", "--quiet", "--initial-branch", "main")
    rendering.commit(job.service, "Start")
    rendering.git(folder, "clone", "--quiet", "--bare", str(job.service), str(job.origin))
    rendering.git(job.service, "remote", "add", "origin", str(job.origin))
    if ci == "gitlab":
        rendering.git(job.origin, "config", "receive.advertisePushOptions", "true")
        executable(job.origin / "hooks" / "post-receive", HOOK)
    return job


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
