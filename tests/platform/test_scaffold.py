"""`app new`: names and fields, and the edits of source files."""

import subprocess
from collections.abc import Callable
from errno import ENOSPC, EROFS
from pathlib import Path
from subprocess import CompletedProcess
from typing import ClassVar, Literal

import pytest
from fastapi import APIRouter
from typer.testing import CliRunner

from app import wiring
from app.platform.cli import command_line
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.dev import scaffold
from app.platform.dev.additions import NewConsumer, NewEvent, write_consumer, write_event
from app.platform.dev.scaffold import (
    Entity,
    ScaffoldFailed,
    files_of,
    write_entity,
)
from app.platform.dev.scaffold_fields import Field, ScaffoldRefused
from app.platform.dev.source_edits import (
    NotRecognised,
    may_import,
    names_list,
    with_component,
    with_contracts,
    with_definition,
)
from app.platform.events.event import BaseEvent, EventType
from app.platform.kafka.subscription import Subscription
from app.platform.service import Component, Service

PROJECT = Path.cwd()
VIEWS_ROUTER = APIRouter(prefix="/shipment-views")


@VIEWS_ROUTER.get("")
async def list_views() -> None: ...


class Confirmed(BaseEvent):
    key_field: ClassVar[str] = "event_id"
    event_type: Literal["shipment.confirmed"] = "shipment.confirmed"


async def confirm(event: Confirmed, uow: UnitOfWork) -> None: ...


WIRING = """\
from app import orders, users
from app.platform import outbox
from app.platform.service import Service

# isort: split
# Your own slices:

service = Service([users.component, orders.component, outbox.component])
"""
CONTRACTS = """\
[[tool.importlinter.contracts]]
layers = [
    "app.__main__",
    "app.wiring",
    # Your own slices:
    # The example:
    "app.posts | app.orders",
    "app.users",
    "app.platform",
]

[[tool.importlinter.contracts]]
containers = [
    # Your own slices:
    # The example:
    "app.users",
]
"""


@pytest.mark.parametrize(
    ("plural", "singular", "model"),
    [
        ("shipments", "shipment", "Shipment"),
        ("line_items", "line_item", "LineItem"),
        ("companies", "company", "Company"),
        ("addresses", "address", "Address"),
        ("people", "person", "Person"),
    ],
)
def test_singular_and_class_follow_from_the_plural(plural: str, singular: str, model: str) -> None:
    entity = Entity.parse(plural, None, [])
    assert (entity.singular, entity.model) == (singular, model)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("shipment", [], "give a plural"),
        ("Shipments", [], "use lower-case letters"),
        ("2fa_codes", [], "use lower-case letters"),
        ("a" * 41, [], "at most 40 characters"),
        ("../etc", [], "use lower-case letters"),
        ("metrics", [], "choose another name"),
        ("shipments", ["weight"], "write name:type"),
        ("shipments", ["weight:float"], "types are str, text"),
        ("shipments", ["class:str"], "choose another name"),
        ("shipments", ["version:int"], "choose another name"),
        ("shipments", ["metadata:str"], "choose another name"),
        ("shipments", ["shipment:str"], "choose another name"),
        ("shipments", ["shipment_id:int"], "choose another name"),
        *(
            ("shipments", [f"{name}:str"], "choose another name")
            for name in ("date", "datetime", "func", "schema", "dict", "validate", "model_dump")
        ),
        ("shipments", ["a:str", "a:int"], "a is given twice"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, fields: list[str], said: str) -> None:
    with pytest.raises(ScaffoldRefused, match=said):
        Entity.parse(name, None, fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, []) for name in ("fields", "sequences", "responses", "queries")),
        *((name, []) for name in ("events", "services")),
        ("flags", ["express:bool"]),
    ],
)
def test_names_that_clash_in_the_files_are_refused(name: str, fields: list[str]) -> None:
    with pytest.raises(ScaffoldRefused, match=f"{name}: in app/{name}/.+; choose another name"):
        files_of(Entity.parse(name, None, fields))


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["sessions", "items", "people", "line_items", "states"])
def test_files_of_ordinary_names_are_python(name: str, projection: bool, streamed: bool) -> None:
    entity = Entity.parse(name, None, ["label:str"], projection=projection, streamed=streamed)
    files = files_of(entity)
    for path, text in files.items():
        compile(text, path, "exec")
    written = {path.name for path in files}
    assert ({"views.py", "view_router.py"} <= written) is projection
    assert ({"domain.py", "stream.py", "history.py"} <= written) is streamed


def test_fields_of_a_stream_do_not_hide_its_variables() -> None:
    for name in ("state", "change", "saved", "replace", "evolve"):
        with pytest.raises(ScaffoldRefused, match="choose another name"):
            Entity.parse("shipments", None, [f"{name}:str"], streamed=True)
        Entity.parse("shipments", None, [f"{name}:str"])


@pytest.mark.parametrize(
    ("option", "missing", "modules"),
    [
        ("projection", ["projections"], "[outbox, cqrs, event_sourcing]"),
        ("projection", ["outbox", "projections", "event_store"], "[cqrs]"),
        ("streamed", ["outbox", "event_store"], "[outbox, cqrs, event_sourcing]"),
        ("streamed", ["outbox", "projections", "event_store"], "[outbox, event_sourcing]"),
    ],
)
def test_option_of_a_module_that_is_off_says_how_to_switch_it_on(
    option: str, missing: list[str], modules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_: pytest.fail("nothing should be written"))
    monkeypatch.setattr(scaffold, "find_spec", lambda name: name.split(".")[-1] not in missing)
    entity = Entity.parse("shipments", None, [], **{option: True})
    with pytest.raises(ScaffoldRefused) as refused:
        write_entity(PROJECT, entity, wiring.service)
    assert f"`copier update -d 'modules={modules}'`, and run this again" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (Component("a", events=[EventType(Confirmed)]), "the event shipment.confirmed exists"),
        (Component("a", routers=lambda: [VIEWS_ROUTER]), "the path /shipment-views exists"),
        *(
            (
                Component("a", subscriptions=[Subscription(name, {Confirmed: confirm})]),
                f"the consumer {name} exists",
            )
            for name in ("shipment-views", "shipment-confirmations")
        ),
    ],
)
def test_names_of_a_read_model_are_not_taken_twice(taken: Component, said: str) -> None:
    entity = Entity.parse("shipments", None, [], projection=True)
    with pytest.raises(ScaffoldRefused, match=f"{said} already"):
        entity.refuse_taken(Service([taken]), PROJECT)


def test_optional_field_may_be_missing() -> None:
    field = Field.parse("note:text?")
    assert (field.python, field.api) == ("str | None", "Text | None = None")


def test_migration_follows_the_services_newest() -> None:
    files = files_of(Entity.parse("shipments", None, []))
    (name,) = (path.name for path in files if path.parts[0] == "migrations")
    assert name == "core_0002_add_shipments.py"
    assert 'down_revision: str | None = "core_0001"' in files[Path("migrations/versions") / name]


@pytest.mark.parametrize("name", ["users", "inboxes"])
def test_nothing_is_written_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_: pytest.fail("nothing should be written"))
    singular = {"inboxes": "order"}.get(name)  # there is an event order.created
    with pytest.raises(ScaffoldRefused, match="exists already: choose another name"):
        write_entity(PROJECT, Entity.parse(name, singular, []), wiring.service)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files of a project that `app new` edits, and an empty slice."""
    for name in ("app/wiring.py", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    (tmp_path / "app" / "parcels").mkdir()
    (tmp_path / "app" / "parcels" / "__init__.py").write_text("EVENTS, SUBSCRIPTIONS\n")
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def add_entity(project: Path) -> None:
    write_entity(project, Entity.parse("shipments", None, []), wiring.service)


def add_event(project: Path) -> None:
    write_event(project, NewEvent.parse("parcel.lost", "parcels", [], None), wiring.service)


def add_consumer(project: Path) -> None:
    event = wiring.service.events[0]
    write_consumer(project, NewConsumer("watch", event, "parcels"))


STEPS = [
    *((add_entity, step) for step in ("ruff check", "ruff format", "app schemas")),
    *((add_event, step) for step in ("ruff check", "app schemas")),
    (add_consumer, "ruff format"),
]


@pytest.mark.parametrize(("add", "failing"), STEPS)
def test_nothing_is_left_where_a_step_fails(
    project: Path, monkeypatch: pytest.MonkeyPatch, add: Callable[[Path], None], failing: str
) -> None:
    before = contents(project)

    def run(command: list[str], **_options: object) -> CompletedProcess[str]:
        failed = " ".join(command[2:4]) == failing
        if (project / "app" / "shipments").is_dir():  # `app schemas` imports it
            (project / "app" / "shipments" / "__pycache__").mkdir(exist_ok=True)
        return CompletedProcess(command, 1 if failed else 0, "", "no\nway")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ScaffoldFailed, match=f"`{failing}.*` failed: way; nothing was changed$"):
        add(project)
    assert contents(project) == before


@pytest.mark.parametrize("place", ["first file", "tests", "pyproject.toml"])
def test_nothing_is_left_where_the_disk_is_full(
    project: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before = contents(project)
    files = len(files_of(Entity.parse("shipments", None, [])))
    written = {"first file": 0, "tests": files - 1, "pyproject.toml": files + 1}[place]
    left, write_text = iter(range(written)), Path.write_text

    def write_until_full(path: Path, text: str, encoding: str) -> int:
        if next(left, None) is None:
            raise OSError(ENOSPC, "No space left on device", str(path))
        return write_text(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", write_until_full)
    monkeypatch.setattr(subprocess, "run", lambda c, **_: CompletedProcess(c, 0, "", ""))
    with pytest.raises(ScaffoldFailed, match=r"No space left .*; nothing was changed$") as failed:
        add_entity(project)
    assert "\n" not in str(failed.value)
    assert contents(project) == before


def test_what_cannot_be_undone_is_listed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_options: object) -> CompletedProcess[str]:
        monkeypatch.setattr(Path, "unlink", refuse)
        return CompletedProcess(command, 1, "", "no way")

    def refuse(path: Path) -> None:
        raise OSError(EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ScaffoldFailed, match=r"no way; undo by hand: app/parcels/events\.py$"):
        add_event(project)


def test_missing_file_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "wiring.py").write_bytes((PROJECT / "app" / "wiring.py").read_bytes())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command_line(lambda: wiring.service), ["new", "entity", "crates"])
    assert result.exit_code == 1
    assert result.output == "error: [Errno 2] No such file or directory: '{}'\n".format(
        tmp_path / "pyproject.toml"
    )


def test_command_says_in_one_line_why_nothing_was_written() -> None:
    cli = command_line(lambda: wiring.service)
    result = CliRunner().invoke(cli, ["new", "entity", "users"])
    assert result.exit_code == 1
    assert result.output == "error: the folder app/users exists already: choose another name\n"


def test_component_is_imported_and_added_at_its_own_place() -> None:
    edited = with_component(WIRING, "shipments")
    assert "# Your own slices:\nfrom app import shipments\n" in edited
    assert "outbox.component, shipments.component, ])" in edited
    compile(edited, "wiring.py", "exec")


def test_template_lines_stay_when_a_component_is_added() -> None:
    source = (PROJECT / "app" / "wiring.py").read_text("utf-8")
    before = source.splitlines()
    edited = with_component(source, "shipments").splitlines()
    assert [line for line in edited if "shipments.component" not in line or "#" in line] == [
        *before[: before.index("service = Service(") - 1],
        "from app import shipments",
        *before[before.index("service = Service(") - 1 : -2],
        before[-1],
    ]


def test_component_is_added_to_an_empty_list() -> None:
    source = "from app.platform.service import Service\n\nservice = Service([])\n"
    edited = with_component(source, "shipments")
    assert edited.startswith("from app import shipments\n")
    assert "Service([shipments.component, ])" in edited


def test_comma_is_added_where_the_last_component_has_none() -> None:
    source = 'service = Service([users.component  # no comma, not "," here\n    # own:\n])\n'
    edited = with_component(source, "shipments")
    compile(edited, "wiring.py", "exec")
    assert "users.component,   # no comma" in edited


def test_position_is_counted_in_bytes_as_ast_does() -> None:
    source = WIRING.replace("[users", '["é" and users')
    assert "outbox.component, shipments.component, ])" in with_component(source, "shipments")


def test_wiring_without_a_list_is_left_alone() -> None:
    with pytest.raises(NotRecognised, match="write the list of components like that"):
        with_component("service = build()\n", "shipments")


def test_slice_gets_lines_of_its_own_in_the_contracts() -> None:
    edited = with_contracts(with_contracts(CONTRACTS, "shipments"), "parcels")
    added = '    # Your own slices:\n    "app.parcels",\n    "app.shipments",\n    # The example:\n'
    assert edited.count(added) == 2
    assert edited.replace(added, "    # Your own slices:\n    # The example:\n") == CONTRACTS
    assert may_import(edited, "parcels", "shipments")
    assert may_import(edited, "shipments", "orders")


@pytest.mark.parametrize(
    "source", ["[tool]\n", CONTRACTS.replace("    # Your own slices:\n", "", 1)]
)
def test_contracts_without_a_place_for_slices_are_refused(source: str) -> None:
    with pytest.raises(NotRecognised, match="bring the comments `# Your own slices` back"):
        with_contracts(source, "shipments")


EVENTS_FILE = """\
from app.platform.events.event import EventType

EVENTS = [EventType(Placed)]
"""


def test_definition_stands_above_its_list() -> None:
    edited = with_definition(EVENTS_FILE, "import a\n", "class B: ...\n", "EVENTS", "EventType(B)")
    assert edited.startswith("import a\nfrom app.platform")
    assert edited.endswith("class B: ...\nEVENTS = [EventType(Placed), EventType(B)]\n")


def test_annotated_list_keeps_its_comment() -> None:
    source = '"""Events."""\n\n# All of them.\nEVENTS: list[EventType] = []\n'
    edited = with_definition(source, "import a\n", "class B: ...\n", "EVENTS", "EventType(B)")
    assert edited == (
        '"""Events."""\nimport a\n\nclass B: ...\n# All of them.\n'
        "EVENTS: list[EventType] = [EventType(B)]\n"
    )


def test_imports_stand_below_those_from_the_future() -> None:
    source = "from __future__ import annotations\n\nEVENTS = []\n"
    edited = with_definition(source, "import a\n", "class B: ...\n", "EVENTS", "B")
    assert edited.startswith("from __future__ import annotations\nimport a\n")


@pytest.mark.parametrize("line", ["from app.orders.domain import B\n", "class B: ...\n"])
def test_name_that_is_bound_already_is_refused(line: str) -> None:
    with pytest.raises(NotRecognised, match="B is something else there: choose another name"):
        with_definition(line + EVENTS_FILE, "", "class B: ...\n", "EVENTS", "EventType(B)")


def test_slice_may_import_from_the_layers_below_it() -> None:
    assert may_import(CONTRACTS, "orders", "users")
    assert not may_import(CONTRACTS, "orders", "posts")
    assert not may_import(CONTRACTS, "users", "orders")
    assert may_import(CONTRACTS, "none", "orders")


@pytest.mark.parametrize(
    ("source", "listed"),
    [
        ("component = Component(subscriptions=SUBSCRIPTIONS)", True),
        ("component = Component(subscriptions=[*handlers.SUBSCRIPTIONS])", True),
        ("component = Component(subscriptions=projections.SUBSCRIPTIONS)", False),
        ("# SUBSCRIPTIONS", False),
    ],
)
def test_component_names_the_list_in_its_code(source: str, listed: bool) -> None:
    assert names_list(source, "handlers", "SUBSCRIPTIONS") is listed


def test_list_that_is_gone_is_missed() -> None:
    with pytest.raises(NotRecognised, match=r"no list `EVENTS = \[...\]`: add it"):
        with_definition("EVENTS = load()\n", "", "", "EVENTS", "EventType(B)")


@pytest.mark.parametrize(
    ("name", "slice", "fields", "owner", "said"),
    [
        ("shipped", "orders", [], None, "write entity.action"),
        ("order.Shipped", "orders", [], None, "use lower-case letters"),
        ("order.a.b", "orders", [], None, "use lower-case letters"),
        ("order.shipped", "orders", ["order_id:int"], None, "choose another name"),
        ("order.shipped", "orders", ["timestamp:datetime"], None, "choose another name"),
        ("order.shipped", "orders", [], "Billing!", "first part of the event's topic"),
        ("order.created", "orders", [], None, "exists already"),
        ("order.created", "orders", [], "shop", "exists already"),
        ("order.shipped", "orders", ["a:str", "a:int"], None, "a is given twice"),
        ("parcel.shipped", None, [], None, "there is no slice parcels"),
        ("parcel.shipped", "platform", [], None, "does not name EVENTS"),
    ],
)
def test_events_that_cannot_be_are_refused(
    name: str,
    slice: str | None,
    fields: list[str],
    owner: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_: pytest.fail("nothing should be written"))
    with pytest.raises(ScaffoldRefused, match=said):
        write_event(PROJECT, NewEvent.parse(name, slice, fields, owner), wiring.service)


@pytest.mark.parametrize(
    ("name", "event", "slice", "said"),
    [
        ("Mails", "order.created", None, "use lower-case letters"),
        ("inventory", "order.created", None, "exists already"),
        ("mails", "order.lost", None, "there is no event order.lost"),
        ("mails", "order.created", "parcels", "there is no slice parcels"),
        ("mails", "order.created", "posts", "app.posts may not import app.orders"),
    ],
)
def test_consumers_that_cannot_be_are_refused(
    name: str, event: str, slice: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_: pytest.fail("nothing should be written"))
    with pytest.raises(ScaffoldRefused, match=said):
        write_consumer(PROJECT, NewConsumer.parse(name, event, slice, wiring.service))


@pytest.mark.parametrize(
    ("plural", "field", "options"),
    [
        ("shipments", "shipment_version:str", {"projection": True}),
        ("shipments", "cast:str", {"streamed": True}),
        ("casts", "name:str", {"streamed": True}),
    ],
)
def test_names_of_the_code_of_an_option_are_refused(
    plural: str, field: str, options: dict[str, bool]
) -> None:
    with pytest.raises(ScaffoldRefused):
        Entity.parse(plural, None, [field], **options)
    assert Entity.parse(plural, None, [field])
