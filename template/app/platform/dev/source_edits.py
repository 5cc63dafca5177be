"""Additions to source files: a slice where slices are listed, a class or a function, an item of a list."""

import ast
from collections.abc import Iterator
from typing import Any

from app.platform.dev.errors import import_development


class NotRecognised(Exception):
    """A file was changed so that the place of an addition is not found in it."""


def with_component(source: str, name: str) -> str:
    """Import the slice `name` in the text of wiring.py, and add its component behind the other slices.

    The result is still to be formatted. Raises NotRecognised.
    """
    tree = ast.parse(source)
    listed = _listed(tree)
    slices = next(
        (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "app"),
        None,
    )
    imported = {alias.asname or alias.name for alias in slices.names} if slices else set()
    of_slices = [part for part in listed.elts if _root(part) in imported]
    text = _Text(source)
    # From the end to the beginning, so that positions stay what they are.
    if of_slices:
        last = of_slices[-1]
        text.insert(last.end_lineno, last.end_col_offset, f", {name}.component")
    else:
        text.insert(listed.lineno, listed.col_offset + 1, f"{name}.component, ")
    if slices:
        text.insert(slices.names[-1].end_lineno, slices.names[-1].end_col_offset, f", {name}")
    else:
        text.insert(_import_line(source), 0, f"from app import {name}\n")
    return str(text)


def with_contracts(source: str, name: str) -> str:
    """Add the slice `name` to the import contracts in the text of pyproject.toml.

    It may import the slices in the layers below the first one. Raises NotRecognised.
    """
    tomlkit = import_development("tomlkit", "tomlkit")
    document: Any = tomlkit.parse(source)
    try:
        service, slices, *_ = document["tool"]["importlinter"]["contracts"]
        layers, containers = service["layers"], slices["containers"]
        below = layers.index("app.wiring") + 1
        if layers[below] == "app.platform":  # there is no slice
            layers.insert(below, f"app.{name}")
        else:
            layers[below] = f"{layers[below]} | app.{name}"
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise NotRecognised(
            "pyproject.toml: the first import contract does not list `app.wiring` and the slices, or"
            " the second has no `containers`; bring them back"
        ) from error
    containers.append(f"app.{name}")
    return str(tomlkit.dumps(document))


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
    document: Any = import_development("tomlkit", "tomlkit").parse(project)
    layers = document["tool"]["importlinter"]["contracts"][0]["layers"]
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


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


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
