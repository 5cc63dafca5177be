"""Properties of every rendering, and of the template's files."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests import matrix, rendering
from tests.conftest import Rendered
from tests.matrix import Variant
from tests.rendering import ROOT

TEMPLATE = ROOT / "template"
# One worker has all variants of a code, so that each is rendered once.
each_variant = pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, id=variant.name, marks=pytest.mark.xdist_group(variant.code))
        for variant in [*matrix.variants(), matrix.awkward()]
    ],
)
each_code = pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=code.code, marks=pytest.mark.xdist_group(code.code))
        for code in matrix.codes()
    ],
)

# No residue: GitHub's own expressions, ${{ … }}, and the doubled braces of Python's f-strings.
RESIDUE = re.compile(r"(?<!\$)\{\{-?\s*\w+\s*[|.}]|\{%-?\s|\{#-?\s")

# The names of each module's package, commands and files.
NAMES_OF_MODULE = {
    "outbox": ("outbox",),
    "cqrs": ("cqrs", "projections"),
    "event_sourcing": ("event_sourcing", "event_store"),
}

# Files that name every module, whatever was chosen.
NAMES_MODULES = {Path(".copier-answers.yml"), Path("app/platform/dev/scaffold.j2")}


def text_files(service: Path) -> list[Path]:
    return [path for path in rendering.files(service) if path.suffix not in {".png", ".jks"}]


@each_variant
def test_no_template_tag_remains(variant: Variant, rendered: Rendered) -> None:
    service = rendered(variant)
    left = [
        f"{path}: {line}"
        for path in text_files(service)
        if path.suffix != ".j2"  # a template of the service's own
        and path.name != "dashboard.json"  # Grafana's legends have double braces, too
        for line in (service / path).read_text().splitlines()
        if RESIDUE.search(line)
    ]
    assert left == []


@each_variant
def test_every_file_name_is_rendered(variant: Variant, rendered: Rendered) -> None:
    odd = [path for path in rendering.files(rendered(variant)) if re.search(r'["{}]', str(path))]
    assert odd == []


@each_variant
def test_only_the_files_of_the_template_are_rendered(variant: Variant, rendered: Rendered) -> None:
    debris = {".pyc", ".orig", ".rej", ".jinja"}
    assert [path for path in rendering.files(rendered(variant)) if path.suffix in debris] == []


@each_variant
def test_a_rendering_is_formatted(variant: Variant, rendered: Rendered) -> None:
    ruff(rendered(variant), "format", "--check", "--diff", "--no-cache", ".")


@each_variant
def test_a_rendering_passes_its_own_lint(variant: Variant, rendered: Rendered) -> None:
    ruff(rendered(variant), "check", "--no-cache", ".")


def ruff(service: Path, *arguments: str) -> None:
    command = (sys.executable, "-m", "ruff", *arguments)
    result = subprocess.run(command, cwd=service, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@each_variant
def test_every_file_parses(variant: Variant, rendered: Rendered) -> None:
    service = rendered(variant)
    for path in rendering.files(service):
        text = (service / path).read_text()
        match path.suffix:
            case ".py":
                compile(text, str(path), "exec", dont_inherit=True)
            case ".toml":
                tomllib.loads(text)
            case ".yml" | ".yaml":
                assert yaml.safe_load(text) is not None, path
            case ".json":
                json.loads(text)


@each_variant
def test_nothing_of_a_left_out_module_remains(variant: Variant, rendered: Rendered) -> None:
    service = rendered(variant)
    left_out = [
        name
        for module in NAMES_OF_MODULE.keys() - {*variant.modules}
        for name in NAMES_OF_MODULE[module]
    ]
    own = re.compile("|".join(remains_of(name) for name in left_out) or "(?!)")
    remains = [
        f"{path}: {line}"
        for path in text_files(service)
        if path not in NAMES_MODULES
        for line in [str(path), *(service / path).read_text().splitlines()]
        if own.search(line)
    ]
    assert remains == []


def remains_of(name: str) -> str:
    """Return an expression for imports, paths, commands and settings of a module."""
    command = name.replace("_", "-")
    place = rf"(?:app|platform|cli|tests|docs|migrations/versions)[./]{name}"
    return rf"\b(?:{place}|app {command}|{name.upper()}_)|import {name}\b"


# The nouns of the sample domain, its ids, its events and its classes. The machine has users of its
# own, and whatever is sorted has an order.
SAMPLE_DOMAIN = re.compile(
    r"\b(?:users(?<!other users)|orders(?<!different orders)|posts|inventory|customers?)\b"
    r"|\b(?:user|order|post)(?:_id|\.(?:created|paid|cancelled|published))\b"
    r"|\b(?:User|Post|Order(?!Key))[A-Z]\w+"
)


@each_variant
def test_nothing_of_the_sample_domain_remains(variant: Variant, rendered: Rendered) -> None:
    service = rendered(variant)
    found = [
        f"{path}: {line}"
        for path in text_files(service)
        if path not in NAMES_MODULES
        for line in [str(path), *(service / path).read_text().splitlines()]
        if SAMPLE_DOMAIN.search(line)
    ]
    heartbeats = [path for path in rendering.files(service) if "heartbeat" in str(path)]
    if variant.sample_domain:
        assert found, "the expression would find nothing anywhere"
        assert heartbeats == []
    else:
        assert found == []
        assert heartbeats


@each_variant
def test_nothing_of_another_ci_remains(variant: Variant, rendered: Rendered) -> None:
    service = rendered(variant)
    names = {"github": ".github", "gitlab": ".gitlab-ci.yml"}
    found = {ci for ci, name in names.items() if (service / name).exists()}
    assert found == {variant.ci} - {"none"}


@each_code
def test_the_choice_of_ci_changes_no_code(code: Variant, rendered: Rendered) -> None:
    """So a check of a code (tests/generated) holds for each of its variants."""
    # The README tells people what their CI needs.
    of_a_ci = {".github", ".gitlab-ci.yml", ".copier-answers.yml", "README.md"}
    first, *others = (
        contents(rendered(variant), of_a_ci)
        for variant in matrix.variants()
        if variant.code == code.code
    )
    assert "pyproject.toml" in first
    assert len(others) == len(matrix.choices("ci")) - 1
    for other in others:
        assert other == first


def contents(service: Path, without: set[str]) -> dict[str, bytes]:
    return {
        str(path): (service / path).read_bytes()
        for path in rendering.files(service)
        if path.parts[0] not in without
    }


def test_every_module_that_exists_is_a_choice() -> None:
    built = {path.parent.name for path in TEMPLATE.glob("app/platform/*/__init__.py")}
    there = {module for module, names in NAMES_OF_MODULE.items() if not built.isdisjoint(names)}
    assert {*matrix.choices("modules")} == there == NAMES_OF_MODULE.keys()


def test_every_path_of_a_module_is_in_the_manifest() -> None:
    manifest = "\n".join(rendering.configuration()["_exclude"])
    for module, names in NAMES_OF_MODULE.items():
        condition = rf"{{% if '{module}' not in modules \| default\(\[\]\) %}}"
        (listed,) = re.findall(rf"{condition}\n(.+?)\n{{% (?:else|endif) %}}", manifest, re.DOTALL)
        named = [
            path.relative_to(TEMPLATE)
            for path in TEMPLATE.rglob("*")
            if path.stem.removeprefix("test_").startswith(names) and "__pycache__" not in str(path)
        ]
        forgotten = [
            str(path)
            for path in named
            if not any(
                part.match(pattern) for part in (path, *path.parents) for pattern in listed.split()
            )
        ]
        assert forgotten == [], f"add to the manifest of {module} in copier.yml"


def test_the_manifest_reads_every_answer_with_a_default() -> None:
    for entry in rendering.configuration()["_exclude"]:
        for expression in re.findall(r"{% if (.*?) %}", entry):
            assert "default(" in expression, entry


def test_the_template_needs_no_trust() -> None:
    forbidden = {"_tasks", "_jinja_extensions", "_migrations"}
    assert forbidden & rendering.configuration().keys() == set()


def is_wiring(path: Path) -> bool:
    """Return whether a file may have tags: the service's name and list, a slice's component and storage."""
    match path.relative_to(TEMPLATE / "app").parts:
        case ["__init__.py.jinja" | "wiring.py.jinja"]:
            return True
        case [folder, "__init__.py.jinja" | "storage.py.jinja"]:
            return folder != "platform"
    return False


def test_only_the_wiring_has_template_tags_in_python() -> None:
    assert [path for path in TEMPLATE.rglob("*.py.jinja") if not is_wiring(path)] == []
    plain = (path for path in TEMPLATE.rglob("*.py") if ".venv" not in path.parts)
    assert [path.name for path in plain if RESIDUE.search(path.read_text())] == []


def test_template_tags_in_python_are_lines_of_their_own() -> None:
    statement = re.compile(r"\{%-? .+ -?%\}")
    for path in TEMPLATE.rglob("*.py.jinja"):
        for line in path.read_text().splitlines():
            if "{%" in line:
                assert statement.fullmatch(line), f"{path.name}: {line}"


def test_the_wiring_has_few_tags() -> None:
    wiring = (TEMPLATE / "app" / "wiring.py.jinja").read_text()
    assert 0 < len(re.findall(r"\{%|\{\{", wiring)) <= 20


@each_code
def test_the_wiring_is_a_list_of_components(code: Variant, rendered: Rendered) -> None:
    tree = ast.parse((rendered(code) / "app" / "wiring.py").read_text())
    docstring, *imports, service = tree.body
    assert isinstance(docstring, ast.Expr)
    assert imports
    assert all(isinstance(line, ast.ImportFrom) for line in imports)
    assert isinstance(service, ast.Assign)
    listed = re.fullmatch(r"service = Service\(\[(.+)\]\)", ast.unparse(service))
    assert listed
    assert all(re.fullmatch(r"\w+\.component", part) for part in listed[1].split(", "))


def test_only_files_that_need_an_answer_are_templates() -> None:
    needless = [
        str(path.relative_to(ROOT))
        for path in TEMPLATE.rglob("*.jinja")
        if not RESIDUE.search(path.read_text() + path.name.removesuffix(".jinja"))
    ]
    assert needless == []


def test_no_file_name_has_a_quote() -> None:
    listed = rendering.git(ROOT, "ls-files", "-z").split("\0")
    assert [name for name in listed if '"' in name or name.endswith((".pyc", ".pyo"))] == []
