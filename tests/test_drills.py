"""The lines that drills replace exist, and so do the drills that guards name."""

import ast
from pathlib import Path

import pytest

from tests.drills.__main__ import HERE, SHORTER, is_for
from tests.drills.guards import GUARDS, Guard
from tests.rendering import ROOT

CHANGES = [*((guard.file, guard.old, guard.new) for guard in GUARDS), *SHORTER]
NAMES = [*(guard.name for guard in GUARDS), *(f"shorter: {old}" for _, old, _ in SHORTER)]


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_replaced_lines_are_in_the_template_once(change: tuple[str, str, str]) -> None:
    file, old, new = change
    assert (ROOT / "template" / file).read_text().count(old) == 1
    assert old != new


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_the_drill_of_a_guard_runs_in_a_service_with_its_modules(guard: Guard) -> None:
    files = [file for file in HERE.glob("test_*.py") if is_for(file.name, guard.modules)]
    chosen = guard.drill.partition(" and ")[0]  # as `-k` has it
    assert [name for file in files for name in drills(file) if chosen in name]


def test_each_guard_has_a_name_of_its_own() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)


def drills(file: Path) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(file.read_text()).body
    return [part.name for part in body if isinstance(part, functions)]
