"""The code that `app new` writes passes the service's checks and its own tests untouched."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests import matrix
from tests.generated.conftest import Service
from tests.generated.workspace import Workspace
from tests.matrix import Variant

FIELDS = ["address:str", "weight:decimal", "pieces:int", "express:bool", "note:text?"]
FIELDS += ["due:datetime", "day:date?", "reference:uuid"]
# For each module that a variant has: of the first entity, the second and the third.
OPTIONS = {
    "shipments": {"--projection": "cqrs", "--event-sourced": "event_sourcing"},
    "line_items": {"--projection": "cqrs"},
    "series_of_tests": {"--event-sourced": "event_sourcing"},
}
VARIANTS = [matrix.ends()[0], replace(matrix.ends()[-1], sample_domain=False)]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.code)
def extended(
    request: pytest.FixtureRequest, workspace: Workspace, repository: Path, services_folder: Path
) -> Service:
    """A service with a new entity of fields of each type, one with the default field, one with an odd
    name, each with what modules add, an event of each, one of another service, and its consumer."""
    variant: Variant = request.param
    path = workspace.render(variant, repository, f"{variant.code}-extended")
    settings = workspace.shared_environment(path)
    service = Service(path, f"{variant.code} extended", settings, services_folder / "summary")
    paths = {"PYTHONPATH": str(path)}
    fields = [option for field in FIELDS for option in ("--field", field)]

    def entity(name: str, *options: str) -> str:
        chosen = [option for option, module in OPTIONS[name].items() if module in variant.modules]
        return service.run("app", "new", "entity", name, *options, *chosen, settings=paths)

    said = entity("shipments", *fields)
    assert "wrote   app/shipments/router.py" in said
    assert "changed app/wiring.py" in said
    entity("line_items")
    said = service.run(
        "app", "new", "event", "shipment.lost", "--field", "day:date", settings=paths
    )
    assert "changed app/shipments/events.py" in said
    assert "wrote   tests/contracts/shipment.lost.json" in said
    service.run("app", "new", "event", "line_item.dropped", settings=paths)
    entity("series_of_tests", "--field", "children:int", "--singular", "series")
    foreign = ("--service", "billing", "--slice", "shipments", "--field", "amount:decimal")
    service.run("app", "new", "event", "invoice.paid", *foreign, settings=paths)
    said = service.run("app", "new", "consumer", "paid-shipments", "invoice.paid", settings=paths)
    assert "handle_paid_shipments in app/shipments/handlers.py" in said
    return service


def test_new_entities_pass_every_check_untouched(
    extended: Service, servers: Mapping[str, str]
) -> None:
    extended.run("ruff", "check", ".")
    extended.run("ruff", "format", "--check", ".")
    extended.run("lint-imports")
    extended.run("mypy")
    tests = (
        "tests/shipments",
        "tests/line_items",
        "tests/series_of_tests",
        "tests/contracts",
        "tests/platform/test_database.py",
    )
    said = extended.run(
        "pytest", "-q", *tests, "tests/platform/test_hostile_input.py", settings=servers
    )
    extended.report_last_line(said, "three new entities")
