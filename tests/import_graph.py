"""The imports between the packages of the service, drawn from its code.

`python -m tests.import_graph` writes docs/imports.md.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

from tests.rendering import ROOT

TEMPLATE = ROOT / "template"
PAGE = ROOT / "docs" / "imports.md"
HEAD = """# Imports between packages

Each package, and the packages that it imports; what is imported stands further down. It is drawn from
`template/app` by `python -m tests.import_graph`, and a test fails when it is out of date or has a cycle.

```
"""


def packages() -> Mapping[str, set[str]]:
    """Map each package to those it imports: slices, and packages and modules of the platform."""
    found: dict[str, set[str]] = {}
    for path in sorted((TEMPLATE / "app").rglob("*.py*")):
        here = _package_name(_module_name(path))
        found.setdefault(here, set())
        found[here] |= {
            name for name in map(_package_name, _imported_modules(path)) if name != here
        }
    return found


def render_page() -> str:
    """Return the text of docs/imports.md. Raises graphlib.CycleError."""
    graph = {name: sorted(imports) for name, imports in sorted(packages().items())}
    order = [*TopologicalSorter(graph).static_order()][::-1]
    width = max(map(len, order))
    lines = [f"{name:<{width}}  {' '.join(graph[name])}".rstrip() for name in order]
    return HEAD + "\n".join(lines) + "\n```\n"


def _module_name(path: Path) -> str:
    parts = path.relative_to(TEMPLATE).as_posix().removesuffix(".jinja").removesuffix(".py")
    return parts.removesuffix("/__init__").replace("/", ".")


def _package_name(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1:2] == ["platform"] else 2])


def _imported_modules(path: Path) -> Iterator[str]:
    # The lines with tags are left out: the imports of every variant count.
    lines = path.read_text().splitlines()
    source = (
        "\n".join(line for line in lines if not line.startswith("{%"))
        if _is_template(path)
        else None
    )
    tree = ast.parse(source if source is not None else path.read_text())
    for node in ast.walk(_without_type_checking(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "app":
            for name in node.names:
                yield _resolve_module(f"{node.module}.{name.name}")


def _is_template(path: Path) -> bool:
    return path.suffix == ".jinja"


def _without_type_checking(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


def _resolve_module(name: str) -> str:
    """Return the module of `name`, which is a module or a member of one."""
    path = TEMPLATE / name.replace(".", "/")
    is_module = any(Path(f"{path}{end}").exists() for end in ("", ".py", ".py.jinja"))
    return name if is_module else name.rpartition(".")[0]


if __name__ == "__main__":
    PAGE.write_text(render_page())
