"""A module that is switched on in a living service, by `copier update`."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import rendering
from tests.generated.conftest import Service
from tests.shell import environment

UPGRADED = Path(__file__).with_name("upgraded.py")
OUTBOX = {"outbox", "outbox_parked", "outbox_buckets"}
TABLES = {
    ("outbox",): OUTBOX,
    ("outbox", "event_sourcing"): OUTBOX | {"events", "event_snapshots"},
}


@pytest.fixture
def living(base: Service, services_folder: Path, repository: Path) -> Service:
    """A service without modules, under version control, with its environment."""
    path = services_folder / "living" / "my-service"
    shutil.rmtree(path.parent, ignore_errors=True)
    rendering.render(repository, path, {"modules": []})
    python = str(base.path / ".venv" / "bin" / "python")
    sync = ("uv", "sync", "--quiet", "--no-python-downloads", "--python", python)
    subprocess.run(sync, cwd=path, env=environment(), check=True)
    rendering.git(path, "init", "--quiet", "--initial-branch", "main")
    rendering.commit(path, "Start")
    return Service(path, "living", {}, base.closing)


@pytest.mark.xdist_group("switching on")
@pytest.mark.parametrize("modules", TABLES, ids="+".join)
def test_a_module_comes_with_its_files_and_its_tables_and_changes_no_data(
    living: Service, modules: tuple[str, ...], repository: Path, services_folder: Path
) -> None:
    before = upgraded(living, "ann")
    assert TABLES[modules].isdisjoint(before["tables"])
    answers = ("--data", f"modules=[{', '.join(modules)}]")
    result = rendering.copier("update", "--defaults", *answers, cwd=living.path)
    assert result.returncode == 0, result.stderr
    fresh = services_folder / "fresh" / "my-service"
    shutil.rmtree(fresh.parent, ignore_errors=True)
    rendering.render(repository, fresh, {"modules": [*modules]})
    for path in rendering.files(fresh):
        assert (living.path / path).read_bytes() == (fresh / path).read_bytes(), path
    after = upgraded(living)
    assert set(after["tables"]) == {*before["tables"], *TABLES[modules]}
    assert after["users"] == ["ann"]


def upgraded(service: Service, *newcomers: str) -> dict[str, Any]:
    folder = service.path / ".dev" / "upgraded"
    said = service.run("python", "-P", str(UPGRADED), str(folder), *newcomers)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found
