"""What is switched on and off in a living service, by `copier update`."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import rendering
from tests.generated.conftest import Service
from tests.generated.workshop import Workshop
from tests.shell import environment

pytestmark = pytest.mark.xdist_group("switching on")

UPGRADED = Path(__file__).with_name("upgraded.py")
OUTBOX = {"outbox", "outbox_parked", "outbox_buckets"}
TABLES = {
    ("outbox",): OUTBOX,
    ("outbox", "event_sourcing"): OUTBOX | {"events", "event_snapshots"},
}


@pytest.fixture
def living(base: Service, services_folder: Path, repository: Path, workshop: Workshop) -> Service:
    """A service without modules, under version control, with its environment."""
    path = services_folder / "living" / "my-service"
    shutil.rmtree(path.parent, ignore_errors=True)
    rendering.render(repository, path, {"modules": []})
    sync = ("uv", "sync", "--quiet", "--no-python-downloads", "--python", workshop.python)
    subprocess.run(sync, cwd=path, env=environment(), check=True)
    rendering.git(path, "init", "--quiet", "--initial-branch", "main")
    rendering.commit(path, "Start")
    return Service(path, "living", {}, base.closing)


@pytest.mark.parametrize("modules", TABLES, ids="+".join)
def test_a_module_comes_with_its_files_and_its_tables_and_changes_no_data(
    living: Service, modules: tuple[str, ...], repository: Path, services_folder: Path
) -> None:
    before = upgraded(living, "ann")
    assert TABLES[modules].isdisjoint(before["tables"])
    answers = ("--data", f"modules=[{', '.join(modules)}]")
    result = rendering.copier("update", "--defaults", *answers, cwd=living.path)
    assert result.returncode == 0, result.stderr
    equals_a_fresh_rendering(living, repository, services_folder, {"modules": [*modules]})
    after = upgraded(living)
    assert set(after["tables"]) == {*before["tables"], *TABLES[modules]}
    assert after["users"] == ["ann"]


def test_the_sample_domain_goes_and_its_tables_stay_with_their_data(
    living: Service, repository: Path, services_folder: Path
) -> None:
    before = upgraded(living, "ann")
    answer = ("--data", "sample_domain=false")
    result = rendering.copier("update", "--defaults", *answer, cwd=living.path)
    assert result.returncode == 0, result.stderr
    equals_a_fresh_rendering(living, repository, services_folder, {"sample_domain": False})
    after = upgraded(living)
    assert set(after["tables"]) == {*before["tables"], "heartbeats", "heartbeat_counts"}
    assert after["users"] == ["ann"]


def equals_a_fresh_rendering(
    living: Service, repository: Path, services_folder: Path, answers: rendering.Answers
) -> None:
    fresh = services_folder / "fresh" / "my-service"
    shutil.rmtree(fresh.parent, ignore_errors=True)
    rendering.render(repository, fresh, answers)
    listed = rendering.git(living.path, "ls-files", "--cached", "--others", "--exclude-standard")
    there = {name for name in listed.splitlines() if (living.path / name).is_file()}
    assert there - {"uv.lock"} == {str(path) for path in rendering.files(fresh)}
    for path in rendering.files(fresh):
        assert (living.path / path).read_bytes() == (fresh / path).read_bytes(), path


def upgraded(service: Service, *newcomers: str) -> dict[str, Any]:
    folder = service.path / ".dev" / "upgraded"
    said = service.run("python", "-P", str(UPGRADED), str(folder), *newcomers)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found
