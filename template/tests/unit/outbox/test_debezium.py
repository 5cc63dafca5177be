"""The connector's configuration names columns and headers that there are."""

import json
from pathlib import Path

from app.outbox.model import HEADER_COLUMNS, OutboxRow

CONNECTOR = Path(__file__).parents[3] / "deploy" / "debezium" / "outbox-connector.json"
ROUTER = "transforms.outbox."


def settings() -> dict[str, str]:
    found: dict[str, str] = json.loads(CONNECTOR.read_text())["config"]
    return found


def test_the_router_takes_topic_key_and_value_from_our_columns() -> None:
    config = settings()
    assert config["table.include.list"] == f"public.{OutboxRow.__tablename__}"
    names = ["route.by.field", "table.field.event.key", "table.field.event.payload"]
    columns = [config[ROUTER + name] for name in names]
    assert columns == ["topic", "key", "value"]
    assert {*columns, config[ROUTER + "table.field.event.id"]} <= set(
        OutboxRow.__table__.columns.keys()
    )


def test_every_column_of_a_header_becomes_that_header() -> None:
    placed = settings()[ROUTER + "table.fields.additional.placement"].split(",")
    assert {tuple(entry.split(":")) for entry in placed} == {
        (column, "header", name) for name, column in HEADER_COLUMNS.items()
    }


def test_the_headers_that_are_always_the_same_are_inserted() -> None:
    config = settings()
    inserted = {
        config[f"transforms.{name}.header"]: config[f"transforms.{name}.value.literal"]
        for name in config["transforms"].split(",")
        if name != "outbox"
    }
    assert inserted == {"ce_specversion": "1.0", "content-type": "application/json"}
