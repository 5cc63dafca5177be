"""Writing a new slice from `scaffold.j2`: its files, its migration, and its lines in what lists slices."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.platform.database.engine import Base
from app.platform.database.revisions import next_revision
from app.platform.dev import source_edits
from app.platform.dev.errors import import_development
from app.platform.dev.scaffold_fields import (
    TYPES,
    Field,
    ScaffoldRefused,
    checked_name,
    parse_fields,
)
from app.platform.service import Service

TEMPLATE = Path(__file__).with_name("scaffold.j2")
# Variables of the functions that the template writes.
_VARIABLES_OF_STREAMS = {"cast", "change", "evolve", "replace", "saved", "state"}
_VARIABLES = {"at", "create", "created", "cursor", "found", "limit", "more", "page", "router"}
# The modules by name, each with its package, and those that `require_modules` needs for an option.
_MODULES = {"outbox": "outbox", "cqrs": "projections", "event_sourcing": "event_store"}
_NEEDED = {"--projection": ["cqrs"], "--event-sourced": ["outbox", "event_sourcing"]}
_OF_SERVICE = {"platform", "wiring", "health", "metrics", "docs", "redoc", "openapi", "main"}


class ScaffoldFailed(Exception):
    """A step failed, and what was written before it was undone. The message says which, and why."""


@dataclass(frozen=True)
class Entity:
    """The names of a new entity, such as `line_items` and `line_item`, and its fields."""

    plural: str
    singular: str
    fields: Sequence[Field]
    projection: bool = False
    """Has a read model (module cqrs)."""
    streamed: bool = False
    """Is stored as a stream of events (module event_sourcing)."""

    @classmethod
    def parse(
        cls,
        plural: str,
        singular: str | None,
        fields: Iterable[str],
        *,
        projection: bool = False,
        streamed: bool = False,
    ) -> "Entity":
        """Raises ScaffoldRefused."""
        checked_name(plural, plural, _OF_SERVICE | _VARIABLES)
        one = singular or import_development("inflect", "inflect").engine().singular_noun(plural)
        if not one or one == plural:
            raise ScaffoldRefused(
                f"{plural}: give a plural, such as `shipments`, or its singular with --singular"
            )
        streams = _VARIABLES_OF_STREAMS if streamed else set()
        called = {"cast"} if streamed else set()  # where a variable has the name of the entity
        checked_name(one, f"--singular {one}", {plural, *_VARIABLES, *called})
        own = {one, plural, f"{one}_id", "service", "idempotency", "session", *streams}
        own |= {f"{one}_version"} if projection or streamed else set()
        read = parse_fields(fields, own) or [Field("name", TYPES["str"])]
        fields_in_order = sorted(read, key=lambda field: field.optional)
        return cls(plural, one, fields_in_order, projection, streamed)

    @property
    def model(self) -> str:
        return camel(self.singular)

    @property
    def path(self) -> str:
        return self.plural.replace("_", "-")

    @property
    def views_path(self) -> str:
        return f"{self.singular.replace('_', '-')}-views"

    @property
    def versioned(self) -> bool:
        """Whether each change has a version, and is published with the full state."""
        return self.projection or self.streamed

    @property
    def event_names(self) -> list[str]:
        actions = ["created", "confirmed"] if self.versioned else ["created"]
        return [f"{self.singular}.{action}" for action in actions]

    @property
    def consumer_names(self) -> list[str]:
        confirmations = f"{self.singular.replace('_', '-')}-confirmations"
        return [confirmations, self.views_path] if self.projection else [confirmations]

    @property
    def sample(self) -> dict[str, Any]:
        """The body of a request."""
        return {field.name: field.type.example for field in self.fields}

    def refuse_taken(self, service: Service, project: Path) -> None:
        """Raise ScaffoldRefused where the service has something of one of its names already."""
        prefix = f"/{self.path}"
        paths = {str(getattr(route, "path", "")) for r in service.routers for route in r.routes}
        events = {entry.name for entry in service.events}
        consumers = {entry.name for entry in service.subscriptions}
        taken = {
            f"the folder app/{self.plural}": (project / "app" / self.plural).exists(),
            f"the folder tests/{self.plural}": (project / "tests" / self.plural).exists(),
            f"the table {self.plural}": self.plural in Base.metadata.tables,
            f"the path {prefix}": any(p == prefix or p.startswith(f"{prefix}/") for p in paths),
            **{f"the event {name}": name in events for name in self.event_names},
            **{f"the consumer {name}": name in consumers for name in self.consumer_names},
        }
        if self.projection:
            views, table = f"/{self.views_path}", f"{self.singular}_views"
            taken |= {
                f"the table {table}": table in Base.metadata.tables,
                f"the path {views}": any(p == views or p.startswith(f"{views}/") for p in paths),
            }
        for what, there in taken.items():
            if there:
                raise ScaffoldRefused(f"{what} exists already: choose another name")


def require_modules(entity: Entity) -> None:
    """Raise ScaffoldRefused if a module that `entity` needs is off; say how to switch it on."""
    on = [name for name, package in _MODULES.items() if find_spec(f"app.platform.{package}")]
    asked = {"--projection": entity.projection, "--event-sourced": entity.streamed}
    for option, needed in _NEEDED.items():
        if asked[option] and needed[-1] not in on:
            modules = ", ".join(name for name in _MODULES if name in {*on, *needed})
            raise ScaffoldRefused(
                f"{option} needs the module {needed[-1]}: switch it on with"
                f" `copier update -d 'modules=[{modules}]'`, and run this again"
            )


def render(part: str, **values: object) -> str:
    """Render the `part` of the template: "entity", "event" or "consumer"."""
    jinja2 = import_development("jinja2", "jinja2")
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it renders Python
    )
    text: str = environment.from_string(TEMPLATE.read_text("utf-8")).render(part=part, **values)
    return text


def files_of(entity: Entity) -> dict[Path, str]:
    """Render the files of `entity`, by their paths in the project."""
    revision, down_revision = next_revision()
    required = [field.name for field in entity.fields if not field.optional]
    rendered = render(
        "entity",
        plural=entity.plural,
        singular=entity.singular,
        fields=entity.fields,
        model=entity.model,
        models=camel(entity.plural),
        path=entity.path,
        views_path=entity.views_path,
        dashed=entity.singular.replace("_", "-"),
        constant=entity.plural.upper(),
        projection=entity.projection,
        streamed=entity.streamed,
        versioned=entity.versioned,
        words=entity.plural.replace("_", " "),
        word=entity.singular.replace("_", " "),
        article="an" if entity.singular[0] in "aeiou" else "a",
        title=entity.plural.replace("_", " ").capitalize(),
        parameters=", ".join(f"{field.name}: {field.python}" for field in entity.fields),
        passed=", ".join(f"{field.name}={field.name}" for field in entity.fields),
        from_request=", ".join(
            f"{field.name}={entity.singular}.{field.name}" for field in entity.fields
        ),
        from_change=", ".join(f"change.{field.name}" for field in entity.fields),
        aliases={f.type.api: f.type.definition for f in entity.fields if f.type.definition},
        sample=repr(entity.sample),
        required=repr(required or ["none"]),
        missing=2**62,
        revision=revision,
        down_revision=down_revision,
    )
    files = dict(_split(rendered))
    for path, text in files.items():
        if path.suffix == ".py":
            refuse_clashes(path, text, entity.plural)
    return files


def refuse_clashes(path: Path, text: str, name: str) -> None:
    """Raise ScaffoldRefused where two things in `text` have one name, one of which is made from `name`."""
    try:
        compile(text, path, "exec")
    except SyntaxError as error:
        problem = error.msg
    else:
        clashes = source_edits.bound_twice(text)
        problem = f"two things are called {min(clashes)}" if clashes else ""
    if problem:
        raise ScaffoldRefused(
            f"{name}: in {path.as_posix()}, {problem}; choose another name, or another --singular"
        )


def write_entity(project: Path, entity: Entity, service: Service) -> Mapping[Path, str]:
    """Write the slice, format it, and export its schema; return what was done to each path.

    Raises ScaffoldRefused and ScaffoldFailed; then nothing has changed.
    """
    require_modules(entity)
    entity.refuse_taken(service, project)
    new = files_of(entity)
    wiring, contracts = project / "app" / "wiring.py", project / "pyproject.toml"
    try:
        wired = source_edits.with_component(wiring.read_text("utf-8"), entity.plural)
        contracted = source_edits.with_contracts(contracts.read_text("utf-8"), entity.plural)
    except source_edits.NotRecognised as error:
        raise ScaffoldRefused(str(error)) from error
    refuse_clashes(wiring.relative_to(project), wired, entity.plural)
    edited = {wiring.relative_to(project): wired, contracts.relative_to(project): contracted}
    samples = [Path("tests/contracts") / f"{name}.json" for name in entity.event_names]
    with undone_on_failure(project, [*new, *edited, *samples]):
        write(project, new)
        write(project, edited)  # now that the slice is whole
        export_schemas(project)
    return {
        **dict.fromkeys([*new, *samples], "wrote"),
        **dict.fromkeys(edited, "changed"),
    }


@contextmanager
def undone_on_failure(project: Path, paths: Iterable[Path]) -> Iterator[None]:
    """Restore `paths` if the block fails. Raises ScaffoldFailed for OSError."""
    before = {path: _read(project / path) for path in paths}
    folders = {folder for path in before for folder in path.parents}
    new_folders = sorted(folder for folder in folders if not (project / folder).exists())
    try:
        yield
    except BaseException as error:
        left = [path.as_posix() for path in reversed(before) if not _restore(project, path, before)]
        for folder in new_folders:
            shutil.rmtree(project / folder, ignore_errors=True)
        undone = f"undo by hand: {', '.join(left)}" if left else "nothing was changed"
        if isinstance(error, OSError | ScaffoldFailed):
            raise ScaffoldFailed(f"{error}; {undone}") from error
        raise


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _restore(project: Path, path: Path, before: Mapping[Path, bytes | None]) -> bool:
    """Return whether `path` is as it was before."""
    content = before[path]
    try:
        if _read(project / path) == content:
            return True
        if content is None:
            (project / path).unlink()
        else:
            (project / path).write_bytes(content)
    except OSError:
        return False
    return True


def write(project: Path, files: Mapping[Path, str]) -> None:
    """Write `files`, and format them. Raises OSError and ScaffoldFailed."""
    for path, text in files.items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text, "utf-8")
    python = [str(path) for path in files if path.suffix == ".py"]
    _run(project, "ruff", "check", "--quiet", "--fix", "--select", "F401,I", *python)
    _run(project, "ruff", "format", "--quiet", *python)


def export_schemas(project: Path) -> None:
    """Store the schemas of new events. Raises OSError and ScaffoldFailed."""
    _run(project, "app", "schemas", "export")


def first_request(entity: Entity) -> tuple[str, str]:
    """The path and the JSON body of a request that creates one."""
    return f"/{entity.path}", json.dumps(entity.sample)


def _run(project: Path, module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    if done.returncode != 0:
        said = [*done.stdout.splitlines(), *done.stderr.splitlines()] or ["it said nothing"]
        name = " ".join([module, *arguments[:2]])
        raise ScaffoldFailed(f"`{name}` failed: {said[-1]}")


def _split(rendered: str) -> Iterator[tuple[Path, str]]:
    """Split at the lines that name files."""
    _, *parts = re.split(r"^#: (.+)\n", rendered, flags=re.MULTILINE)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        yield Path(name), text


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
