"""Bad answers are refused with a message that says how to mend them; good ones survive."""

import ast
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

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
    ({"project_slug": ""}, "Use kebab-case"),
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
    ({"project_name": "注文"}, "Use kebab-case"),  # its slug would be empty
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
    ({"modules": "outbox"}, "Not a YAML list: 'outbox'"),
    ({"ci": "travis"}, "'travis' is not in ['github', 'gitlab', 'none']"),
]


@pytest.mark.parametrize(("answers", "message"), REFUSED, ids=str)
def test_a_bad_answer_is_refused_with_its_mend(
    answers: Mapping[str, object], message: str, repository: Path, tmp_path: Path
) -> None:
    result = rendering.copy(repository, tmp_path / "service", answers)
    assert result.returncode != 0
    assert message in result.stderr.splitlines()[-1], result.stderr
    assert not (tmp_path / "service").exists()


def test_every_question_has_help_default_and_a_guard() -> None:
    for name, question in rendering.questions().items():
        assert question["help"], name
        assert "default" in question, name
        guarded = {"validator", "choices"} & question.keys() or question["type"] == "bool"
        assert guarded, f"{name} takes anything"


def test_every_guard_has_an_answer_that_it_refuses() -> None:
    tried = {name for answers, _ in REFUSED for name in answers}
    assert tried == rendering.questions().keys()


@pytest.mark.parametrize("modules", [["event_sourcing"], ["cqrs", "event_sourcing"]], ids=str)
def test_event_sourcing_without_outbox_is_refused(
    modules: list[str], repository: Path, tmp_path: Path
) -> None:
    result = rendering.copy(repository, tmp_path / "service", {"modules": modules})
    assert result.returncode != 0
    assert "choose outbox as well" in result.stderr.splitlines()[-1]


def test_event_sourcing_with_outbox_is_taken(repository: Path, tmp_path: Path) -> None:
    modules = ["outbox", "event_sourcing"]
    result = rendering.copy(repository, tmp_path / "service", {"modules": modules})
    assert result.returncode == 0, result.stderr


def test_an_answer_that_nobody_asked_for_is_caught(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(rendering.UnknownQuestion, match="moduls"):
        rendering.copy(repository, tmp_path / "service", {"moduls": ["outbox"]})


def test_awkward_but_legal_answers_arrive_unharmed(repository: Path, tmp_path: Path) -> None:
    service = rendering.render(repository, tmp_path / "service", matrix.AWKWARD)
    project = tomllib.loads((service / "pyproject.toml").read_text())["project"]
    assert project["name"] == "ann-s-caf-1-beta-100-1-co"
    assert project["description"] == matrix.AWKWARD["description"]
    assert project["authors"] == [
        {"name": matrix.AWKWARD["author_name"], "email": matrix.AWKWARD["author_email"]}
    ]
    about = constants((service / "app" / "about.py").read_text())
    assert about["PROJECT_NAME"] == matrix.AWKWARD["project_name"]
    assert about["DESCRIPTION"] == matrix.AWKWARD["description"]
    assert about["SERVICE_NAME"] == matrix.AWKWARD["service_name"]
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert matrix.AWKWARD.items() <= answers.items()


def constants(source: str) -> dict[str, object]:
    assignments = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assignments}


def test_the_questions_in_the_documentation_are_those_that_are_asked() -> None:
    page = (ROOT / "docs" / "questions.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"`{name}`" for name in rendering.questions()]


def test_defaults_are_the_base_variant(repository: Path, tmp_path: Path) -> None:
    service = rendering.render(repository, tmp_path / "my-service", {})
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert answers.get("modules", []) == list(Variant().modules)
    assert answers["project_slug"] == answers["service_name"] == "my-service"
