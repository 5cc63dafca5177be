"""Additions to source files: a slice where slices are listed, a class or a function, an item of a list."""

import ast
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
        text.insert(_first_import(source), 0, f"from app import {name}\n")
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
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.List() as listed) if (
                name == variable
            ):
                text = _Text(source)
                if listed.elts:
                    last = listed.elts[-1]
                    text.insert(last.end_lineno, last.end_col_offset, f", {item}")
                else:
                    text.insert(listed.lineno, listed.col_offset + 1, item)
                text.insert(node.lineno, 0, definition)
                text.insert(_first_import(source), 0, imports)
                return str(text)
    raise NotRecognised(f"there is no list `{variable} = [...]`: add it")


def _first_import(source: str) -> int:
    imports = (n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom))
    return next((node.lineno for node in imports), 1)


def _listed(tree: ast.Module) -> ast.List:
    for node in tree.body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="service")], value=ast.Call(args=[ast.List() as listed, *_])
            ):
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
        old = self._lines[line - 1]
        self._lines[line - 1] = old[:column] + new.encode() + old[column:]

    def __str__(self) -> str:
        return b"".join(self._lines).decode()
