"""Files that other tools read are valid for those tools."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from tests import dashboard, import_graph
from tests.conftest import Rendered
from tests.matrix import Variant
from tests.rendering import ROOT

FULL_SHA = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*")
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WORKFLOWS = sorted([*ROOT.glob(".github/workflows/*"), *ROOT.glob("template/.github/workflows/*")])
each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)


def matches_schema(schema: str, *paths: Path) -> None:
    """Check against a schema that comes with check-jsonschema."""
    command = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema)
    result = subprocess.run((*command, *paths), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@each_workflow
def test_a_workflow_follows_githubs_schema(workflow: Path) -> None:
    matches_schema("vendor.github-workflows", workflow)


@each_workflow
def test_a_workflow_pins_every_action_to_a_commit(workflow: Path) -> None:
    used = re.findall(r"uses:\s*(.+)", workflow.read_text())
    assert used
    assert [action for action in used if not FULL_SHA.fullmatch(action)] == []


# The update job pushes a branch and opens a pull request.
MAY_WRITE = {"update.yml": {"update": {"contents": "write", "pull-requests": "write"}}}


@each_workflow
def test_a_workflow_may_only_read_unless_it_offers_an_update(workflow: Path) -> None:
    loaded = yaml.safe_load(workflow.read_text())
    assert loaded["permissions"] == {"contents": "read"}
    jobs = loaded["jobs"].items()
    more = {name: job["permissions"] for name, job in jobs if "permissions" in job}
    assert more == MAY_WRITE.get(workflow.name, {})


def test_the_gitlab_pipeline_follows_its_schema(rendered: Rendered) -> None:
    matches_schema("vendor.gitlab-ci", rendered(Variant(ci="gitlab")) / ".gitlab-ci.yml")


@pytest.fixture
def compose(rendered: Rendered) -> Path:
    return rendered(Variant()) / "compose.yaml"


def test_the_compose_file_follows_the_specification(compose: Path) -> None:
    matches_schema("vendor.compose-spec", compose)


def test_compose_starts_processes_after_migrations_and_topics(compose: Path) -> None:
    services = yaml.safe_load(compose.read_text())["services"]
    for process in ("api", "worker"):
        waits_for = services[process]["depends_on"]
        assert {name: condition["condition"] for name, condition in waits_for.items()} == {
            "migrations": "service_completed_successfully",
            "topics": "service_completed_successfully",
        }


def test_compose_gives_every_process_the_same_time_to_stop(rendered: Rendered) -> None:
    compose = rendered(Variant(("outbox",))) / "compose.yaml"
    services = yaml.safe_load(compose.read_text())["services"]
    given = {services[process]["stop_grace_period"] for process in ("api", "worker", "relay")}
    assert len(given) == 1


def test_the_page_of_tracing_adds_a_collector_to_every_process(
    rendered: Rendered, tmp_path: Path
) -> None:
    service = rendered(Variant(("outbox",)))
    blocks = YAML.findall((service / "docs" / "tracing.md").read_text())
    (override,) = [block for block in blocks if block.startswith("# compose.override.yaml\n")]
    file = tmp_path / "compose.override.yaml"
    file.write_text(override)
    matches_schema("vendor.compose-spec", file)
    added = yaml.safe_load(override)["services"]
    (collector,) = [name for name, its in added.items() if "image" in its]
    traced = {name: its["environment"] for name, its in added.items() if name != collector}
    services = yaml.safe_load((service / "compose.yaml").read_text())["services"]
    assert traced.keys() == {name for name, its in services.items() if "restart" in its}
    addresses = {address for its in traced.values() for address in its.values()}
    assert addresses == {f"http://{collector}:4318"}


def test_compose_publishes_ports_to_this_machine_only(compose: Path) -> None:
    services = yaml.safe_load(compose.read_text())["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_the_image_runs_without_root() -> None:
    dockerfile = (ROOT / "template" / "Dockerfile").read_text()
    final_stage = dockerfile.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", final_stage, re.MULTILINE)
    assert "HEALTHCHECK" in final_stage
    assert 'ENTRYPOINT ["app"]' in final_stage


def test_the_builder_is_sent_everything_the_image_needs() -> None:
    ignored = (ROOT / "template" / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert sent >= {"app", "migrations", "pyproject.toml", "uv.lock", "README.md"}


def test_the_development_part_is_not_sent_to_the_builder() -> None:
    ignored = (ROOT / "template" / ".dockerignore").read_text().splitlines()
    # The last line that matches a path decides.
    assert ignored.index("!app") < ignored.index("app/platform/dev")


def test_the_wheel_has_the_service_without_its_development_part(
    rendered: Rendered, tmp_path: Path
) -> None:
    service = tmp_path / "service"
    shutil.copytree(rendered(Variant()), service)
    build = ("uv", "build", "--quiet", "--wheel", "--out-dir", tmp_path)
    subprocess.run(build, cwd=service, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = ZipFile(wheel).namelist()
    assert {"app/wiring.py", "app/platform/runtime.py", "app/migrations/env.py"} <= {*names}
    assert [name for name in names if name.startswith("app/platform/dev/")] == []


def test_no_dependency_of_a_route_runs_in_a_thread() -> None:
    asked_for, plain = set(), set()
    for path in sorted(ROOT.glob("template/app/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Depends":
                asked_for.add(ast.unparse(node.args[0]))
            if isinstance(node, ast.FunctionDef):
                plain.add(node.name)
    assert len(asked_for) > 10
    assert asked_for & plain == set(), "FastAPI runs what is not `async def` in a thread"


def test_names_of_tests_are_short() -> None:
    folders = (ROOT / "tests", ROOT / "template" / "tests")
    names = [
        node.name
        for folder in folders
        for path in folder.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    ]
    assert len(names) > 1000
    assert [name for name in names if len(name) > 60] == []


CELL = re.compile(r"`([^`]+)`")


def rows(table: str) -> list[list[str]]:
    """Return the cells of each row, without the head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_guide_names_existing_files() -> None:
    page = (ROOT / "docs" / "guide.md").read_text()
    sections = rows(page.split("\n## ")[1])
    assert [row[0] for row in sections if not CELL.findall(row[2])] == [], "leads nowhere"
    named = {path for row in sections for path in CELL.findall(row[2])}
    template = ROOT / "template"
    missing = [
        path
        for path in sorted(named)
        if not (template / path).is_file() and not (template / f"{path}.jinja").is_file()
    ]
    assert missing == []


PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PATHS = re.compile(r"`((?:app|tests|benchmarks|hooks|template|docs|migrations|ops)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_existing_files(page: Path) -> None:
    text = page.read_text()
    if page.name == "guide.md":  # the first table's second column names files of the guide
        text = "\n".join(row[2] for row in rows(text.split("\n## ")[1])) + text.split("\n## ")[2]
    named = {name.rstrip("/") for name in PATHS.findall(text)}
    places = [ROOT / "template", ROOT]
    found = {
        name
        for name in named
        if any((place / f"{name}{end}").exists() for place in places for end in ("", ".jinja"))
    }
    assert named - found == set()


def test_the_index_of_decisions_is_current() -> None:
    folder = ROOT / "docs" / "decisions"
    expected = []
    for page in sorted(folder.glob("0*.md")):
        number, _, title = page.read_text().partition("\n")[0].removeprefix("# ").partition(". ")
        expected.append(f"| {number} | [{title}]({page.name}) |")
    assert (folder / "README.md").read_text().splitlines()[-len(expected) :] == expected


def test_the_page_of_imports_is_current_and_has_no_cycle() -> None:
    assert import_graph.PAGE.read_text() == import_graph.render_page(), (
        "run `python -m tests.import_graph`"
    )


def test_the_dashboard_is_current() -> None:
    assert dashboard.FILE.read_text() == dashboard.render(), "run `python -m tests.dashboard`"


def test_the_code_of_the_service_is_short() -> None:
    too_long = []
    for path in sorted((ROOT / "template" / "app").rglob("*.py*")):
        lines = ["" if line.startswith("{%") else line for line in path.read_text().splitlines()]
        name = path.relative_to(ROOT / "template").as_posix()
        too_long += [(name, len(lines))] if len(lines) > 400 else []
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ClassDef):
                is_long = length_of(node) > 400 or methods_of(node) > 20
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                is_long = length_of(node) - sum(map(length_of, functions_in(node))) > 40
            else:
                continue
            too_long += [(f"{name} {node.name}", length_of(node))] if is_long else []
    assert too_long == [], "split along a seam that has a name: 40 lines, 20 methods, 400 lines"


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
CLAUSE = re.compile(r"(What|Whatever|Who|Whoever|Whose|Which|How)\b[^?]*$")


def test_docstrings_begin_no_sentence_with_a_relative_clause() -> None:
    found = []
    for folder in ("benchmarks", "hooks", "template", "tests"):
        paths = [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.py.jinja")]
        found += [f"{path}: {each}" for path in paths for each in sentences_of(path)]
    assert len(found) > 1000
    wrong = [each for each in found if CLAUSE.match(each.partition(": ")[2])]
    assert wrong == [], "name the thing: `All committed rows`, not `What is committed`"


def sentences_of(path: Path) -> list[str]:
    """Return the sentences of the docstrings of a file, without its tags."""
    lines = ["" if line.startswith("{%") else line for line in path.read_text().splitlines()]
    nodes = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, DOCUMENTED)]
    paragraphs = "\n\n".join(ast.get_docstring(node) or "" for node in nodes).split("\n\n")
    return [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.!?]) ", " ".join(paragraph.split()))
    ]


def functions_in(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    return [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]


def length_of(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def methods_of(node: ast.ClassDef) -> int:
    return sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
