"""An unedited service of any version becomes the same as a fresh copy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import matrix, rendering
from tests.matrix import Variant
from tests.rendering import ROOT, Answers
from tests.update import releases


def cases() -> Iterator[tuple[str, Variant]]:
    """Yield each version with each code and each CI that it asked for."""
    for version in releases.VERSIONS:
        seen: list[Answers] = []
        by_ci = [variant for variant in matrix.variants() if variant.code == matrix.codes()[0].code]
        for variant in [*matrix.codes(), *by_ci]:
            answers = releases.known_answers(version, variant.answers)
            if answers not in seen:
                seen.append(answers)
                yield version, variant


@pytest.mark.parametrize(
    ("version", "variant"),
    [pytest.param(*case, id=f"{case[0]}-{case[1].name}") for case in cases()],
)
def test_an_unedited_service_becomes_a_fresh_copy(
    version: str, variant: Variant, history: Path, tmp_path: Path
) -> None:
    service = releases.start(history, version, tmp_path / "service", variant.answers)
    releases.update(service)
    fresh = fresh_copy(history, version, tmp_path / "fresh", variant.answers)
    assert releases.differing_files(service, fresh) == []
    assert f"_commit: {releases.WORKING_TREE}" in (service / ".copier-answers.yml").read_text()


def test_a_second_update_changes_nothing(version: str, history: Path, tmp_path: Path) -> None:
    answers = matrix.ends()[-1].answers
    service = releases.start(history, version, tmp_path / "service", answers)
    releases.update(service)
    rendering.commit(service, "Update")
    releases.update(service)
    assert rendering.git(service, "status", "--porcelain", "--ignored") == ""


def test_a_service_of_an_untagged_commit_can_be_updated(history: Path, tmp_path: Path) -> None:
    """Services record a commit of a template without tags."""
    template = tmp_path / "template"
    rendering.git(tmp_path, "clone", "--quiet", "--no-tags", str(history), str(template))
    commit = releases.VERSIONS["0.1.0"]
    service = tmp_path / "service"
    rendering.render(template, service, {}, version=commit)
    releases.commit_service(service)
    assert f"_commit: {commit[:7]}" in (service / ".copier-answers.yml").read_text()
    rendering.git(template, "tag", releases.WORKING_TREE, "HEAD")
    releases.update(service)
    fresh = rendering.render(template, tmp_path / "fresh", {})
    assert releases.differing_files(service, fresh) == []


# Switching a single module on is in tests/generated/test_switching.py.
SWITCHED = [
    ((), ("outbox", "cqrs", "event_sourcing")),
    (("outbox", "cqrs", "event_sourcing"), ("outbox", "cqrs")),
    (("outbox", "cqrs", "event_sourcing"), ()),
    (("outbox", "event_sourcing"), ("outbox",)),
    (("outbox",), ()),
    (("cqrs",), ()),
]


@pytest.mark.parametrize(("before", "after"), SWITCHED, ids=str)
def test_switching_modules_leads_to_a_fresh_copy(
    before: tuple[str, ...], after: tuple[str, ...], version: str, history: Path, tmp_path: Path
) -> None:
    service = releases.start(history, version, tmp_path / "service", {"modules": [*before]})
    releases.update(service, "--data", f"modules=[{', '.join(after)}]")
    fresh = fresh_copy(history, version, tmp_path / "fresh", {"modules": [*after]})
    assert releases.differing_files(service, fresh) == []


def test_answers_are_kept_and_new_questions_take_their_defaults(
    version: str, next_version: Path, tmp_path: Path
) -> None:
    given = releases.known_answers(version, matrix.awkward().answers)
    service = releases.start(next_version, version, tmp_path / "service", given)
    recorded = recorded_answers(service)
    releases.update(service)
    answers = recorded_answers(service)
    assert {name: answers.get(name) for name in recorded} == recorded
    fresh = rendering.render(next_version, tmp_path / "fresh", given)
    assert releases.differing_files(service, fresh) == []
    questions = rendering.questions(next_version)
    new = questions.keys() - releases.known_answers(version, questions).keys()
    assert "licence" in new
    assert new <= answers.keys()
    assert (service / "LICENCE").read_text() == "MIT\n"


def recorded_answers(service: Path) -> dict[str, object]:
    loaded = yaml.safe_load((service / ".copier-answers.yml").read_text())
    return {name: answer for name, answer in loaded.items() if not name.startswith("_")}


def fresh_copy(history: Path, version: str, destination: Path, answers: Answers) -> Path:
    """Render the newest version, with the answers that the old one asked for."""
    return rendering.render(history, destination, releases.known_answers(version, answers))


def test_every_listed_version_is_a_commit_of_this_repository() -> None:
    for version, commit in releases.VERSIONS.items():
        releases.require_commit(version, commit)
        assert rendering.git(ROOT, "rev-parse", f"{commit}^{{commit}}").strip() == commit


def test_a_shallow_clone_gets_the_remedy(tmp_path: Path) -> None:
    rendering.git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{ROOT}", "shallow")
    with pytest.raises(releases.HistoryMissing, match="git fetch --unshallow"):
        releases.require_commit("0.0.9", "0" * 40, tmp_path / "shallow")
