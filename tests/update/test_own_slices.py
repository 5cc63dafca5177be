"""A team's own slice is never in conflict with the template: its lines do not touch the template's."""

from pathlib import Path

import pytest

from tests import rendering
from tests.update import releases

pytestmark = pytest.mark.xdist_group("own-slices")

EVERY_MODULE: rendering.Answers = {"modules": ["outbox", "cqrs", "event_sourcing"]}


def add_slice(service: Path) -> None:
    for file, text in releases.with_own_slice(service, "bookings").items():
        file.write_text(text)
    slice = service / "app" / "bookings" / "__init__.py"
    slice.parent.mkdir()
    slice.write_text("component = ...\n")
    rendering.commit(service, "The team's slice")


@pytest.mark.parametrize(
    ("answers", "change"),
    [
        ({}, {"sample_domain": False}),
        ({}, EVERY_MODULE),
        ({"modules": ["outbox", "cqrs"]}, {"modules": []}),
        ({"modules": ["cqrs"], "sample_domain": False}, EVERY_MODULE),
        ({}, {}),
    ],
    ids=["leaving the example", "modules on", "modules off", "lean, modules on", "newer version"],
)
def test_own_slice_is_never_in_conflict(
    answers: rendering.Answers, change: rendering.Answers, next_version: Path, tmp_path: Path
) -> None:
    service = tmp_path / "service"
    rendering.render(next_version, service, answers, version=releases.WORKING_TREE)
    releases.commit_service(service)
    add_slice(service)
    data = [f"--data={name}={rendering.as_data(answer)}" for name, answer in change.items()]
    releases.update(service, *data)
    assert rendering.git(service, "ls-files", "--unmerged") == ""
    assert rendering.git(service, "status", "--porcelain", "app/bookings") == ""
    fresh = rendering.render(next_version, tmp_path / "fresh", {**answers, **change})
    for file, text in releases.with_own_slice(fresh, "bookings").items():
        assert (service / file.relative_to(fresh)).read_text() == text, file.name
