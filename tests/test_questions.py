"""Bad answers are refused with a message that says what to do; good ones survive."""

import ast
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from jinja2 import Environment, nodes
from jinja2.sandbox import SandboxedEnvironment
from jinja2_ansible_filters import (  # type: ignore[import-untyped]  # it has no types
    AnsibleCoreFiltersExtension,
)

from tests import matrix, rendering
from tests.matrix import Variant
from tests.rendering import ROOT

PLAIN_TEXT = "Use one line without double quotes, backslashes and template tags"

REFUSED: list[tuple[Mapping[str, object], str]] = [
    ({"project_name": ""}, "Give the service a title"),
    ({"project_name": " "}, "Give the service a title"),
    ({"project_name": 'The "best" service'}, PLAIN_TEXT),
    ({"project_name": "back\\slash"}, PLAIN_TEXT),
    ({"project_name": "two\nlines"}, PLAIN_TEXT),
    ({"project_name": "bell\a"}, PLAIN_TEXT),
    ({"project_name": "{{ project_slug }}"}, PLAIN_TEXT),
    ({"project_name": "x" * 61}, "Use at most 60 characters"),
    ({"project_slug": ""}, "No slug can be made of this title"),
    ({"project_slug": "Order-Service"}, "Use kebab-case"),
    ({"project_slug": "order_service"}, "Use kebab-case"),
    ({"project_slug": "order service"}, "Use kebab-case"),
    ({"project_slug": "order--service"}, "Use kebab-case"),
    ({"project_slug": "-orders"}, "Use kebab-case"),
    ({"project_slug": "orders-"}, "Use kebab-case"),
    ({"project_slug": "2orders"}, "Use kebab-case"),
    ({"project_slug": "orders\n"}, "Use kebab-case"),
    ({"project_slug": "../orders"}, "Use kebab-case"),
    ({"project_slug": "o" * 64}, "Use at most 63 characters"),
    ({"project_name": "注文"}, "No slug can be made of this title"),  # its slug would be empty
    ({"service_name": ""}, "Use lower-case ASCII letters, digits"),
    ({"service_name": "shop.orders"}, "Dots separate the parts of a topic"),
    ({"service_name": "Orders"}, "Use lower-case ASCII letters, digits"),
    ({"service_name": "order service"}, "Use lower-case ASCII letters, digits"),
    ({"service_name": "ordérs"}, "Use lower-case ASCII letters, digits"),
    ({"service_name": "_orders"}, "Use lower-case ASCII letters, digits"),
    ({"service_name": "orders\n"}, "Use lower-case ASCII letters, digits"),
    ({"service_name": "o" * 81}, "Use at most 80 characters"),
    ({"description": ""}, "Say in one sentence"),
    ({"description": 'It "just" works'}, PLAIN_TEXT),
    ({"description": "ends in \\"}, PLAIN_TEXT),
    ({"description": "two\r\nlines"}, PLAIN_TEXT),
    ({"description": "two\u2028lines"}, PLAIN_TEXT),
    ({"description": "{% raw %}"}, PLAIN_TEXT),
    ({"description": "x" * 301}, "Use at most 300 characters"),
    ({"author_name": ""}, "Name a person or a team"),
    ({"author_name": 'Ann "A" Ames'}, PLAIN_TEXT),
    ({"author_name": "Ann\\Ames"}, PLAIN_TEXT),
    ({"author_name": "Ann\tAmes"}, PLAIN_TEXT),
    ({"author_name": "{# Ann #}"}, PLAIN_TEXT),
    ({"author_email": ""}, "Give an e-mail address"),
    ({"author_email": "team"}, "Give an e-mail address"),
    ({"author_email": "team@localhost"}, "Give an e-mail address"),
    ({"author_email": "a@b@example.com"}, "Give an e-mail address"),
    ({"author_email": "team @example.com"}, "Give an e-mail address"),
    ({"author_email": 'te"am@example.com'}, "Give an e-mail address"),
    ({"author_email": "team@example.com\n"}, "Give an e-mail address"),
    ({"modules": ["bogus"]}, "'bogus' is not in ["),
    ({"modules": ["outbox", "bogus"]}, "'bogus' is not in ["),
    ({"modules": "outbox"}, "Not a YAML list: 'outbox'"),
    ({"modules": ["event_sourcing"]}, "choose outbox as well"),
    ({"modules": ["cqrs", "event_sourcing"]}, "choose outbox as well"),
    ({"sample_domain": False, "modules": ["event_sourcing"]}, "choose outbox as well"),
    ({"project_slug": "fastapi"}, "the service depends on the package of this name"),
    ({"project_slug": "starlette"}, "the service depends on the package of this name"),
    ({"ci": "travis"}, "'travis' is not in ['github', 'gitlab', 'none']"),
    ({"ci": ""}, "'' is not in ['github', 'gitlab', 'none']"),
    ({"ci": "GitHub"}, "'GitHub' is not in ['github', 'gitlab', 'none']"),
]

# The recorded answer is valid; a new one that does not fit it is refused.
REFUSED_BY_UPDATE: list[tuple[Mapping[str, object], str, str]] = [
    ({"modules": ["outbox"]}, "modules=[event_sourcing]", "choose outbox as well"),
]


def messages(question: str) -> list[str]:
    """List the messages of a question's validator, one for each of its branches."""
    tree = Environment().parse(rendering.questions()[question].get("validator", ""))
    texts = (
        "".join(part.data for part in output.find_all(nodes.TemplateData))
        for output in tree.find_all(nodes.Output)
    )
    return [" ".join(message.split()) for message in texts if message.strip()]


BRANCHES = [(name, message) for name in rendering.questions() for message in messages(name)]
CHOICES = [name for name, question in rendering.questions().items() if "choices" in question]


@pytest.mark.parametrize(("answers", "message"), REFUSED, ids=str)
def test_a_bad_answer_is_refused_with_the_remedy(
    answers: Mapping[str, object], message: str, repository: Path, tmp_path: Path
) -> None:
    result = rendering.copy(repository, tmp_path / "service", answers)
    assert result.returncode != 0
    (last,) = result.stderr.splitlines()[-1:]
    assert message in last, result.stderr
    complete = [complete for _, complete in BRANCHES if message in complete]
    assert not complete or any(it in last for it in complete), "the message is cut off"
    assert not (tmp_path / "service").exists()


def test_every_question_has_help_default_and_a_guard() -> None:
    for name, question in rendering.questions().items():
        assert question["help"], name
        assert "default" in question, name
        guarded = {"validator", "choices"} & question.keys() or question["type"] == "bool"
        assert guarded, f"{name} takes anything"


@pytest.mark.parametrize(("question", "message"), BRANCHES)
def test_every_branch_of_a_validator_is_tried(question: str, message: str) -> None:
    tried = [answers for answers, refusal in REFUSED if refusal in message and question in answers]
    tried += [answers for answers, _, refusal in REFUSED_BY_UPDATE if refusal in message]
    assert tried, f"add a bad answer to REFUSED for which {question} says: {message}"


def test_every_branch_of_a_validator_has_its_own_message() -> None:
    """With one message for two branches, a bad answer for either would cover both."""
    assert len(set(BRANCHES)) == len(BRANCHES)
    for name, question in rendering.questions().items():
        conditions = question.get("validator", "").replace("{% elif", "{% if").count("{% if")
        assert len(messages(name)) == conditions, name


@pytest.mark.parametrize("question", CHOICES)
def test_an_unknown_choice_is_refused(question: str, repository: Path, tmp_path: Path) -> None:
    several = rendering.questions()[question].get("multiselect", False)
    answers: dict[str, object] = {question: ["no-such-choice"] if several else "no-such-choice"}
    result = rendering.copy(repository, tmp_path / "service", answers)
    assert result.returncode != 0
    assert "'no-such-choice' is not in [" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "service").exists()


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("Größe Überfällig", "groesse-ueberfaellig"),
        ("Żółć, gęślą jaźń", "zolc-gesla-jazn"),
        ("Cafe\N{COMBINING ACUTE ACCENT} Œuvre № 2", "cafe-oeuvre-2"),
        ("2nd Order {N{Service}}", "nd-order-n-service"),
    ],
)
def test_titles_in_latin_scripts_have_a_readable_slug(title: str, slug: str) -> None:
    # As Copier has it, without the time of a rendering.
    jinja = SandboxedEnvironment(extensions=[AnsibleCoreFiltersExtension])
    default = jinja.from_string(rendering.questions()["project_slug"]["default"])
    assert default.render(project_name=title).strip() == slug


def test_no_slug_is_the_name_of_a_dependency() -> None:
    project = (ROOT / "template" / "pyproject.toml.jinja").read_text()
    dependencies = re.findall(r'^    "([a-z0-9-]+)[\[>]', project, re.MULTILINE)
    assert len(dependencies) > 20
    validator = rendering.questions()["project_slug"]["validator"]
    (names,) = re.findall(r"in \((.*?)\)\.split", validator, re.DOTALL)
    assert {*dependencies} - {*re.findall(r"[a-z0-9-]+", names)} == set()


def test_event_sourcing_with_outbox_is_accepted(repository: Path, tmp_path: Path) -> None:
    modules = ["outbox", "event_sourcing"]
    result = rendering.copy(repository, tmp_path / "service", {"modules": modules})
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("recorded", "given", "message"), REFUSED_BY_UPDATE, ids=str)
def test_an_update_with_a_bad_answer_changes_nothing(
    recorded: rendering.Answers, given: str, message: str, repository: Path, tmp_path: Path
) -> None:
    service = rendering.render(repository, tmp_path / "service", recorded)
    rendering.git(service, "init", "--quiet", "--initial-branch", "main")
    rendering.commit(service, "Start")
    result = rendering.copier("update", "--defaults", "--data", given, cwd=service)
    assert result.returncode != 0
    assert message in result.stderr.splitlines()[-1]
    assert rendering.git(service, "status", "--porcelain") == ""


def test_an_answer_to_an_unknown_question_is_caught(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(rendering.UnknownQuestion, match="moduls"):
        rendering.copy(repository, tmp_path / "service", {"moduls": ["outbox"]})


def test_awkward_but_legal_answers_arrive_unharmed(repository: Path, tmp_path: Path) -> None:
    service = rendering.render(repository, tmp_path / "service", matrix.AWKWARD)
    project = tomllib.loads((service / "pyproject.toml").read_text())["project"]
    assert project["name"] == "ann-s-cafe-1-beta-100-1-co"
    assert project["description"] == matrix.AWKWARD["description"]
    assert project["authors"] == [
        {"name": matrix.AWKWARD["author_name"], "email": matrix.AWKWARD["author_email"]}
    ]
    about = constants((service / "app" / "__init__.py").read_text())
    assert about["PROJECT_NAME"] == matrix.AWKWARD["project_name"]
    assert about["DESCRIPTION"] == matrix.AWKWARD["description"]
    assert about["SERVICE_NAME"] == matrix.AWKWARD["service_name"]
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert matrix.AWKWARD.items() <= answers.items()


def constants(source: str) -> dict[str, object]:
    assignments = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assignments}


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    """Read the table of docs/questions.md: default and effect of each question."""
    page = (ROOT / "docs" / "questions.md").read_text()
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines())
    return {row[0].strip("`"): row[1:] for row in cells if row and row[0].startswith("`")}


def test_the_documentation_lists_the_questions(
    rows: dict[str, list[str]],
) -> None:
    assert list(rows) == list(rendering.questions())


def test_the_documentation_lists_the_defaults(
    rows: dict[str, list[str]], repository: Path, tmp_path: Path
) -> None:
    """A default that follows from another answer has its origin after a comma."""
    service = rendering.render(repository, tmp_path / "my-service", {})
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    for name, question in rendering.questions().items():
        default = answers.get(name, question["default"])
        shown = default if isinstance(default, str) else as_shown(default)
        documented, origin = (*rows[name][0].split(", "), "")[:2]
        assert documented == shown, name
        assert bool(origin) is ("{{" in str(question["default"])), name


def as_shown(default: object) -> str:
    return "none" if default == [] else str(default).lower()


@pytest.mark.parametrize("question", CHOICES)
def test_the_documentation_names_every_choice(question: str, rows: dict[str, list[str]]) -> None:
    _, effect = rows[question]
    assert [choice for choice in matrix.choices(question) if f"`{choice}`" not in effect] == []


def test_defaults_are_the_base_variant(repository: Path, tmp_path: Path) -> None:
    service = rendering.render(repository, tmp_path / "my-service", {})
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert answers.get("modules", []) == list(Variant().modules)
    assert answers["project_slug"] == answers["service_name"] == "my-service"
