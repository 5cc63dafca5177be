"""Additions to source files: a slice where slices are listed, a class or a function, an item of a list."""

import ast
import re
import tomllib
from collections.abc import Iterator
from typing import Any


class NotRecognised(Exception):
    """A file was changed so that the place of an addition is not found in it."""


# Lines below these comments are the team's. The template's lines do not touch them, so that no update
# is in conflict with them.
_OWN_IMPORTS = re.compile(r"^# isort: split\n(?:#.*\n)*", re.MULTILINE)
_OWN_SLICES = re.compile(r"^ *# Your own slices\b.*\n", re.MULTILINE)
_CONTRACTS_CHANGED = (
    "pyproject.toml: bring the comments `# Your own slices` back, each on a line of its own, in the"
    " `layers` of the first import contract and in the `containers` of the second"
)


def with_component(source: str, name: str) -> str:
    """Import the slice `name` in the text of wiring.py, and add its component to the end of the list.

    The result is still to be formatted. Raises NotRecognised.
    """
    listed = _listed(ast.parse(source))
    text = _Text(source)
    # From the end to the beginning, so that positions stay what they are.
    assert listed.end_col_offset is not None
    text.insert(listed.end_lineno, listed.end_col_offset - 1, f"{name}.component, ")
    if listed.elts and not _ends_in_comma(source, listed):
        text.insert(listed.elts[-1].end_lineno, listed.elts[-1].end_col_offset, ", ")
    own = _OWN_IMPORTS.search(source)
    line = source.count("\n", 0, own.end()) + 1 if own else _import_line(source)
    text.insert(line, 0, f"from app import {name}\n")
    return str(text)


def with_contracts(source: str, name: str) -> str:
    """Add the slice `name` to the import contracts in the text of pyproject.toml.

    It may import the slices that were there before. Raises NotRecognised.
    """
    edited = _OWN_SLICES.sub(lambda comment: f'{comment[0]}    "app.{name}",\n', source)
    added = f"app.{name}"
    try:
        service, slices, *_ = _contracts(edited)
        complete = added in service["layers"] and added in slices["containers"]
    except (KeyError, ValueError, TypeError) as error:
        raise NotRecognised(f"{_CONTRACTS_CHANGED}: {error}") from error
    if not complete:
        raise NotRecognised(_CONTRACTS_CHANGED)
    return edited


def with_definition(source: str, imports: str, definition: str, variable: str, item: str) -> str:
    """Add `definition` above the list `variable`, and `item` to that list.

    The result is still to be formatted. Raises NotRecognised.
    """
    node, listed = _assigned_list(ast.parse(source), variable)
    _refuse_bound(source, imports, definition)
    text = _Text(source)
    if listed.elts:
        last = listed.elts[-1]
        text.insert(last.end_lineno, last.end_col_offset, f", {item}")
    else:
        text.insert(listed.lineno, listed.col_offset + 1, item)
    lines, above = source.splitlines(), node.lineno
    while lines[above - 2].startswith("#"):  # comments belong to the list
        above -= 1
    text.insert(above, 0, definition)
    text.insert(_import_line(source), 0, imports)
    return str(text)


def bound_twice(source: str) -> set[str]:
    """Return the top-level names that `source` binds to several things."""
    origins: dict[str, set[str]] = {}
    for name, origin in _bindings(ast.parse(source)):
        origins.setdefault(name, set()).add(origin)
    return {name for name, found in origins.items() if len(found) > 1}


def may_import(project: str, importer: str, imported: str) -> bool:
    """Return whether the first import contract in the text of pyproject.toml has the slice
    `importer` in a layer above that of `imported`.
    """
    layers = _contracts(project)[0]["layers"]
    places = {name.strip(): n for n, layer in enumerate(layers) for name in layer.split("|")}
    above, below = places.get(f"app.{importer}"), places.get(f"app.{imported}")
    return above is None or below is None or above < below  # a slice in no layer is not constrained


def names_list(source: str, module: str, variable: str) -> bool:
    """Return whether the code of `source` uses the list `variable` of the slice's `module`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) if name == variable:
                return True
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) == (
                module,
                variable,
            ):
                return True
    return False


def _bindings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """List the top-level names, each with what it is bound to."""
    for node in tree.body:
        match node:
            case ast.ImportFrom(module=module, names=names):
                yield from (
                    (alias.asname or alias.name, f"{module}.{alias.name}") for alias in names
                )
            case ast.Import(names=names):
                yield from ((alias.asname or alias.name, alias.name) for alias in names)
            case (
                ast.ClassDef(name=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
            ):
                yield name, f"line {node.lineno}"
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, f"line {node.lineno}"


def _refuse_bound(source: str, imports: str, definition: str) -> None:
    before = set(_bindings(ast.parse(source)))
    new = [*_bindings(ast.parse(imports)), *_bindings(ast.parse(definition))]
    used = {node.id for node in ast.walk(ast.parse(definition)) if isinstance(node, ast.Name)}
    defined = {name for name, origin in new if origin.startswith("line ")}
    for name, origin in new:
        taken = {other for bound, other in before if bound == name}
        redefined = name in defined and taken
        if redefined or (name in used and taken - {origin}):
            raise NotRecognised(f"{name} is something else there: choose another name")


def _import_line(source: str) -> int:
    """Return the line of the first import, or that below the docstring. `__future__` stays first."""
    tree = ast.parse(source)
    below = 1
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            below = (node.end_lineno or 0) + 1
        elif isinstance(node, ast.Import | ast.ImportFrom):
            return node.lineno
        elif node is tree.body[0] and ast.get_docstring(tree) is not None:
            below = (node.end_lineno or 0) + 1
    return below


def _assigned_list(tree: ast.Module, variable: str) -> tuple[ast.stmt, ast.List]:
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.List() as listed)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.List() as listed)
            ) if name == variable:
                return node, listed
    raise NotRecognised(f"there is no list `{variable} = [...]`: add it")


def _listed(tree: ast.Module) -> ast.List:
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="service")], value=ast.Call(args=[listed, *_]))
                | ast.AnnAssign(target=ast.Name(id="service"), value=ast.Call(args=[listed, *_]))
            ) if isinstance(listed, ast.List):
                return listed
    raise NotRecognised(
        "app/wiring.py has no `service = Service([...])`: write the list of components like that"
    )


def _ends_in_comma(source: str, listed: ast.List) -> bool:
    last = listed.elts[-1]
    assert last.end_lineno is not None
    lines = source.encode().splitlines()[last.end_lineno - 1 : listed.end_lineno]
    lines[-1] = lines[-1][: listed.end_col_offset]
    lines[0] = lines[0][last.end_col_offset :]
    return any(b"," in line.partition(b"#")[0] for line in lines)


def _contracts(project: str) -> list[dict[str, Any]]:
    contracts: list[dict[str, Any]] = tomllib.loads(project)["tool"]["importlinter"]["contracts"]
    return contracts


class _Text:
    """A source text, with insertions at positions as `ast` counts them: columns in bytes."""

    def __init__(self, source: str) -> None:
        self._lines = source.encode().splitlines(keepends=True)

    def insert(self, line: int | None, column: int | None, new: str) -> None:
        assert line is not None
        assert column is not None
        if line > len(self._lines):
            self._lines.append(b"")
        old = self._lines[line - 1]
        self._lines[line - 1] = old[:column] + new.encode() + old[column:]

    def __str__(self) -> str:
        return b"".join(self._lines).decode()
