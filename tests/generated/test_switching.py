"""Modules are switched on and off in a service with data, by `copier update`.

The service comes from the first released version.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests import rendering
from tests.generated.conftest import Service
from tests.generated.workspace import Workspace
from tests.rendering import ROOT
from tests.update import releases

DATABASE = Path(__file__).with_name("service_database.py")
VERSION = next(iter(releases.VERSIONS))

OUTBOX_TABLES = {"outbox", "outbox_parked", "outbox_buckets"}
READ_SIDE_TABLES = {"order_views", "customer_names", "sales", "daily_sales", "projection_rebuilds"}
EVENT_STORE_TABLES = {"events", "event_snapshots"}

Start = Callable[[Iterable[str]], "LivingService"]


class LivingService:
    """A service under version control, with a database of its own."""

    def __init__(self, service: Service, workspace: Workspace, servers: Mapping[str, str]) -> None:
        self.service = service
        self.path = service.path
        self._workspace = workspace
        self._servers = {**servers}
        self._servers["DATABASE_URL"] = self.run("python", "-P", str(DATABASE), "create").strip()

    def run(self, *command: str) -> str:
        environment = self._workspace.shared_environment(self.path)
        return self.service.run(*command, settings={**self._servers, **environment})

    def fill(self, rows: str = "orders") -> None:
        self.run("app", "db", "upgrade")
        self.run("python", "-P", str(DATABASE), rows)

    def rows(self) -> dict[str, list[str]]:
        """Return the contents of each table, without Alembic's own."""
        found: dict[str, list[str]] = json.loads(self.run("python", "-P", str(DATABASE), "dump"))
        return {table: rows for table, rows in found.items() if table != "alembic_version"}

    def switch(self, modules: Iterable[str]) -> None:
        self.update(f"modules=[{', '.join(modules)}]")

    def update(self, answer: str) -> None:
        if rendering.git(self.path, "status", "--porcelain"):  # the lock file of the first to sync
            rendering.commit(self.path, "Lock")
        releases.update(self.path, "--data", answer)


@pytest.fixture(scope="session")
def history(services_folder: Path) -> Path:
    return releases.history(Path(mkdtemp(dir=services_folder)) / "template")


@pytest.fixture
def start(history: Path, base: Service, workspace: Workspace, servers: Mapping[str, str]) -> Start:
    def living_service(modules: Iterable[str]) -> LivingService:
        path = Path(mkdtemp(dir=workspace.folder)) / "my-service"
        releases.start(history, VERSION, path, {"modules": [*modules]})
        return LivingService(Service(path, "living", {}, base.summary), workspace, servers)

    return living_service


@pytest.fixture
def living_lean(
    history: Path, base: Service, workspace: Workspace, servers: Mapping[str, str]
) -> LivingService:
    """Render a lean service of the working tree."""
    path = Path(mkdtemp(dir=workspace.folder)) / "my-service"
    rendering.render(history, path, {"sample_domain": False})
    releases.commit_service(path)
    return LivingService(Service(path, "living", {}, base.summary), workspace, servers)


@dataclass(frozen=True)
class Module:
    needs: tuple[str, ...]
    tables: set[str]
    afterwards: tuple[str, ...]  # what its page says to do
    filled: set[str]  # with what was there before


MODULES = {
    "outbox": Module((), OUTBOX_TABLES, (), set()),
    "cqrs": Module((), READ_SIDE_TABLES, ("projections rebuild order-views",), {"order_views"}),
    "event_sourcing": Module(
        ("outbox",), EVENT_STORE_TABLES, ("event-store import", "event-store verify"), {"events"}
    ),
}


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in MODULES]
)
def test_a_module_switched_on_adds_tables_and_keeps_data(
    module: str, start: Start, history: Path
) -> None:
    new = MODULES[module]
    living_service = start(new.needs)
    living_service.fill()
    before = living_service.rows()
    living_service.switch([*new.needs, module])
    answers = {"modules": [*new.needs, module]}
    fresh = rendering.render(history, living_service.path.with_name("fresh"), answers)
    for path in rendering.files(fresh):
        assert (living_service.path / path).read_bytes() == (fresh / path).read_bytes(), path
    living_service.run("app", "db", "upgrade")
    assert "No new upgrade operations detected" in living_service.run("alembic", "check")
    after = living_service.rows()
    assert after.keys() - before.keys() >= new.tables
    assert {table: rows for table, rows in after.items() if table in before} == before
    for command in new.afterwards:
        living_service.run("app", *command.split())
    rows = living_service.rows()
    assert {table for table in new.tables if rows[table]} >= new.filled
    living_service.run("pytest", "-q", *own_tests(living_service.path, module))


OWN_TESTS = {
    "outbox": ["platform/outbox"],
    "cqrs": ["orders/read_side", "heartbeats/test_read_model.py"],
    "event_sourcing": [
        "platform/test_event_store.py",
        "orders/stream",
        "heartbeats/test_stream.py",
    ],
}


def own_tests(service: Path, module: str) -> list[str]:
    """Return the paths of the tests of a module; some are of the sample domain, or of the lean service."""
    own = [f"tests/{name}" for name in OWN_TESTS[module] if (service / "tests" / name).exists()]
    assert own
    return own


@pytest.mark.xdist_group("switching off")
def test_switching_modules_off_keeps_the_service_and_its_data(
    start: Start, mypy_cache: Path, workspace: Workspace
) -> None:
    living_service = start(["outbox", "cqrs"])
    living_service.fill()
    before = living_service.rows()
    living_service.switch([])
    for check in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["lint-imports"]):
        living_service.run(*check)
    with workspace.locked("mypy"):
        living_service.run("mypy", "--cache-dir", str(mypy_cache))
    assert living_service.rows() == before
    with pytest.raises(AssertionError, match="Bring its file back from git"):
        living_service.run("app", "db", "upgrade")
    # What docs/updating.md says to do, now and later.
    rendering.git(living_service.path, "checkout", "HEAD", "--", "migrations/versions")
    living_service.run("app", "db", "upgrade")
    assert living_service.rows() == before
    revision = ("alembic", "revision", "--autogenerate", "--message", "drop both")
    living_service.run(*revision, "--head", "outbox@head")
    living_service.run("app", "db", "upgrade")
    assert "No new upgrade operations detected" in living_service.run("alembic", "check")
    kept = before.keys() - OUTBOX_TABLES - READ_SIDE_TABLES
    assert living_service.rows() == {table: before[table] for table in before if table in kept}


EVERY_MODULE = ["outbox", "cqrs", "event_sourcing"]
HEARTBEAT_TABLES = {"heartbeats", "heartbeat_counts"}


@pytest.mark.xdist_group("sample domain")
@pytest.mark.parametrize(
    ("modules", "tables"),
    [([], HEARTBEAT_TABLES), (EVERY_MODULE, {*HEARTBEAT_TABLES, "sources", "source_streams"})],
    ids=["base", "every module"],
)
def test_leaving_the_sample_domain_keeps_its_data(
    modules: list[str], tables: set[str], start: Start, history: Path
) -> None:
    living_service = start(modules)
    living_service.fill()
    before = living_service.rows()
    living_service.update("sample_domain=false")
    lean = {"sample_domain": False, "modules": modules}
    fresh = rendering.render(history, living_service.path.with_name("fresh"), lean)
    for path in rendering.files(fresh):
        assert (living_service.path / path).read_bytes() == (fresh / path).read_bytes(), path
    listed = rendering.git(
        living_service.path, "ls-files", "--cached", "--others", "--exclude-standard"
    )
    left = {name for name in listed.splitlines() if (living_service.path / name).is_file()}
    assert left - {"uv.lock"} == {str(path) for path in rendering.files(fresh)}
    living_service.run("app", "db", "upgrade")
    after = living_service.rows()
    assert after.keys() - before.keys() == tables
    assert {table: rows for table, rows in after.items() if table in before} == before


@pytest.mark.xdist_group("sample domain")
def test_the_sample_tables_are_dropped_as_documented(start: Start) -> None:
    living_service = start([])
    living_service.fill()
    living_service.update("sample_domain=false")
    living_service.run("app", "db", "upgrade")
    living_service.run("app", "db", "revision", "--empty", "Drop the sample domain")
    (migration,) = living_service.path.glob("migrations/versions/core_0002_*.py")
    page = (ROOT / "docs" / "updating.md").read_text()
    (step,) = re.findall(r"^```python\n(.+?)^```$", page, re.MULTILINE | re.DOTALL)
    generated = re.compile(r"^def upgrade\(\) -> None:\n.*?\n\n\n", re.MULTILINE | re.DOTALL)
    migration.write_text(generated.sub(f"{step}\n\n", migration.read_text(), count=1))
    living_service.run("app", "db", "upgrade")
    assert "No new upgrade operations detected" in living_service.run("alembic", "check")
    assert {"users", "orders"}.isdisjoint(living_service.rows())


FAREWELLS = """\
from app.platform.service import Component

component = Component("farewells")
"""


@pytest.fixture
def with_own_slices(
    history: Path, base: Service, workspace: Workspace, servers: Mapping[str, str]
) -> LivingService:
    """Render a service with the example, and add a slice by `app new entity` and one by hand."""
    path = Path(mkdtemp(dir=workspace.folder)) / "my-service"
    rendering.render(history, path, {})
    releases.commit_service(path)
    living_service = LivingService(Service(path, "living", {}, base.summary), workspace, servers)
    living_service.run("app", "new", "entity", "bookings")
    (path / "app" / "farewells").mkdir()
    (path / "app" / "farewells" / "__init__.py").write_text(FAREWELLS)
    for file, text in releases.with_own_slice(path, "farewells").items():
        file.write_text(text)
    living_service.run("ruff", "check", "--quiet", "--fix", "app/wiring.py")
    rendering.commit(path, "The team's slices")
    return living_service


@pytest.mark.xdist_group("sample domain")
def test_own_slices_outlive_the_example(
    with_own_slices: LivingService, mypy_cache: Path, workspace: Workspace
) -> None:
    living_service = with_own_slices
    own = ["app/bookings", "app/farewells", "tests/bookings", "migrations/versions/core_0002*"]
    for answer in ("sample_domain=false", "modules=[outbox, cqrs]"):
        living_service.update(answer)
        assert rendering.git(living_service.path, "ls-files", "--unmerged") == ""
        assert rendering.git(living_service.path, "status", "--porcelain", *own) == ""
        rendering.commit(living_service.path, answer)
    for check in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["lint-imports"]):
        living_service.run(*check)
    with workspace.locked("mypy"):
        living_service.run("mypy", "--cache-dir", str(mypy_cache))
    living_service.run("pytest", "-q", "tests/bookings", "tests/contracts")


@pytest.mark.xdist_group("lean")
def test_modules_of_a_lean_service_take_over_existing_data(
    living_lean: LivingService, history: Path
) -> None:
    living_service = living_lean
    living_service.fill("heartbeats")
    before = living_service.rows()
    living_service.switch(EVERY_MODULE)
    lean = {"sample_domain": False, "modules": EVERY_MODULE}
    fresh = rendering.render(history, living_service.path.with_name("fresh"), lean)
    for path in rendering.files(fresh):
        assert (living_service.path / path).read_bytes() == (fresh / path).read_bytes(), path
    living_service.run("app", "db", "upgrade")
    assert "No new upgrade operations detected" in living_service.run("alembic", "check")
    for command in ("projections rebuild sources", "event-store import"):
        living_service.run("app", *command.split())
    assert "2 streams, 0 differ" in living_service.run("app", "event-store", "verify")
    after = living_service.rows()
    assert {table: rows for table, rows in after.items() if table in before} == before
    counts = {table: len(rows) for table, rows in after.items()}
    assert (counts["sources"], counts["source_streams"], counts["events"]) == (2, 2, 3)
