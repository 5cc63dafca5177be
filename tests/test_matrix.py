"""The list of variants agrees with Copier and with the documentation."""

from pathlib import Path

import pytest

from tests import matrix, rendering
from tests.matrix import Variant
from tests.rendering import ROOT

REFUSED = [variant for variant in matrix.combinations() if matrix.refusal(variant)]


@pytest.mark.parametrize("variant", REFUSED, ids=lambda variant: variant.name)
def test_copier_refuses_combinations_that_are_not_listed(
    variant: Variant, repository: Path, tmp_path: Path
) -> None:
    """The tests of renderings show that it accepts those that are listed."""
    result = rendering.copy(repository, tmp_path / "service", variant.answers)
    assert result.returncode != 0
    assert matrix.refusal(variant) in " ".join(result.stderr.split())
    assert not (tmp_path / "service").exists()


def test_every_valid_combination_is_listed() -> None:
    everything = len(REFUSED) + len(matrix.variants())
    deciding = matrix.deciding((), True, "github")
    values = {"modules": 2 ** len(matrix.choices("modules")), "sample_domain": 2}
    expected = len(matrix.choices("ci"))
    for name in deciding.keys() & values.keys():
        expected *= values[name]
    assert everything == expected
    assert len({variant.name for variant in matrix.variants()}) == len(matrix.variants())


def test_every_question_that_decides_files_is_listed() -> None:
    manifest = "\n".join(rendering.configuration()["_exclude"])
    deciding = matrix.deciding((), True, "github").keys()
    assert {name for name in rendering.questions() if f"{name} | default(" in manifest} == deciding


def test_the_ends_are_the_smallest_and_the_largest_variant() -> None:
    smallest, largest = matrix.ends()
    assert smallest == matrix.variants()[0] == Variant()
    assert set(largest.modules) == set(matrix.choices("modules"))


def test_a_variant_is_found_by_its_name_with_and_without_its_ci() -> None:
    (code,) = matrix.named("outbox-cqrs")
    assert code.modules == ("outbox", "cqrs")
    assert matrix.named("outbox-cqrs-gitlab") == [code]
    with pytest.raises(ValueError, match="no variant is called outboks; there are: base"):
        matrix.named("outboks")


def test_the_page_of_variants_is_current() -> None:
    assert matrix.PAGE.read_text() == matrix.page(), "write it anew: nox -s variants"


def test_the_readme_leads_to_the_page_of_variants() -> None:
    assert "(docs/variants.md)" in (ROOT / "README.md").read_text()
