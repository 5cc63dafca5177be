"""The output of the commands."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from samples import (
    NAMED_TOPIC,
    REGISTRY,
    TOPIC,
    MeterNamed,
    MeterRead,
    meter_read,
    named_2,
    record,
)
from typer.testing import CliRunner

from app import wiring
from app.platform import logs
from app.platform.cli import command_line, run
from app.platform.cli.base import advice, counted
from app.platform.cli.dlq import _utc
from app.platform.cli.dlq_letters import describe, summary
from app.platform.cli.event_messages import show
from app.platform.cli.topics import _line as topic_line
from app.platform.config import ConfigurationError
from app.platform.database.engine import DatabaseSettings
from app.platform.dead_letters.selection import skipped_undecodable
from app.platform.dev.servers import MockBroker
from app.platform.events import schemas
from app.platform.events.event import BaseEvent, EventRegistry, EventTopic, EventType
from app.platform.kafka import codec as names
from app.platform.kafka.admin import State, TopicState
from app.platform.kafka.asyncapi import document
from app.platform.kafka.codec import encode
from app.platform.kafka.dead_letters import DeadLetter
from app.platform.kafka.envelopes import CloudEvents
from app.platform.kafka.retry import dead_letter_message, replay_message
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import Topic
from app.platform.service import Component, Service
from app.platform.tracing import Trace, bind_trace, context_of

runner = CliRunner()
cli = command_line(lambda: wiring.service)


async def handle(event: object, uow: object) -> None: ...


BILLING = Subscription("billing", {MeterRead: handle})


class Moved(BaseEvent):
    key_field: ClassVar[str] = "meter_id"
    event_type: Literal["meter.moved"] = "meter.moved"
    meter_id: str


ERROR = ValueError("broken")


def letter(error: Exception, offset: int = 0) -> DeadLetter:
    message = dead_letter_message(record(offset=offset), BILLING, TOPIC, 3, error)
    return DeadLetter.of(record(topic=message.topic, offset=offset, headers=message.headers))


def test_a_dead_letter_is_one_line_whatever_its_error_says() -> None:
    line = describe(letter(ValueError("first\nsecond\r\n\tthird\x1b[2J")), applied=False)

    assert len(line.splitlines()) == 1
    assert f"from={TOPIC}[0]@0 key=m-1 attempts=3" in line
    assert "ValueError: first second third" in line


def test_a_line_begins_with_the_id_that_show_takes() -> None:
    found = letter(ValueError("broken"), offset=5)

    assert describe(found, applied=False).startswith(f"{TOPIC}.billing.dlq:0:5  waiting  ")
    assert "  applied  " in describe(found, applied=True)


def test_an_endless_error_is_cut_and_says_so() -> None:
    assert describe(letter(ValueError("x" * 2000)), applied=False).endswith("x…")
    assert len(describe(letter(ValueError("x" * 2000)), applied=False)) < 500
    assert "…" not in describe(letter(ValueError("x" * 148)), applied=False)


def test_a_line_tells_of_replays() -> None:
    message = replay_message(letter(ValueError("broken")).record)
    again = dead_letter_message(
        record(headers=message.headers, topic=message.topic), BILLING, TOPIC, 4, ERROR
    )
    line = describe(DeadLetter.of(record(headers=again.headers)), applied=False)

    assert "attempts=4 replayed=1  ValueError" in line
    assert "replayed" not in describe(letter(ERROR), applied=False)


def test_to_discard_everything_has_to_be_asked_for() -> None:
    result = runner.invoke(cli, ["dlq", "discard"])

    assert result.exit_code == 1
    assert "--all" in result.output


@pytest.fixture
def mock_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with MockBroker() as broker:
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        yield


CONSUMERS = ", ".join(subscription.name for subscription in wiring.service.subscriptions)


@pytest.mark.usefixtures("mock_broker")
@pytest.mark.parametrize("command", ["list", "replay", "discard"])
def test_an_unknown_consumer_is_refused_with_the_known_ones(command: str) -> None:
    result = runner.invoke(cli, ["dlq", command, "--consumer", "nosuch"])

    assert result.exit_code == 1
    assert f"error: there is no consumer nosuch; there are: {CONSUMERS}\n" in result.output


@pytest.mark.usefixtures("mock_broker")
@pytest.mark.parametrize("command", ["list", "replay", "discard"])
def test_an_unread_topic_is_refused_with_those_that_are_read(command: str) -> None:
    result = runner.invoke(cli, ["dlq", command, "--topic", "review.written"])

    assert result.exit_code == 1
    assert "error: no consumer reads the topic review.written; they read: " in result.output


def test_only_a_consumer_of_the_code_is_handed_dead_letters() -> None:
    result = runner.invoke(cli, ["dlq", "replay", "--to", "nosuch"])

    assert result.exit_code == 1
    assert f"error: there is no consumer nosuch; there are: {CONSUMERS}\n" in result.output


def test_dead_letters_are_handed_over_from_a_named_consumer() -> None:
    name = wiring.service.subscriptions[0].name
    result = runner.invoke(cli, ["dlq", "replay", "--to", name])

    assert result.exit_code == 1
    assert "error: no consumer selected: use --consumer OLD --to NEW" in result.output


def test_a_topic_that_the_service_does_not_have_is_not_followed() -> None:
    result = runner.invoke(cli, ["events", "tail", "nosuch"])

    assert result.exit_code == 1
    assert "error: there is no topic nosuch; there are: " in result.output


@pytest.mark.usefixtures("mock_broker")
def test_missing_topics_hold_no_dead_letters() -> None:
    listed = runner.invoke(cli, ["dlq", "list"])
    followed = runner.invoke(cli, ["events", "tail", "--from-beginning"])

    assert listed.output.startswith("0 dead letters")
    assert "none of these topics exists" in followed.output


METERS_OF_SHOP = Service(
    [Component("meters", events=[EventType(Moved), EventType(MeterRead, service="shop")])]
)
meters = command_line(lambda: METERS_OF_SHOP)


@pytest.mark.usefixtures("mock_broker")
def test_an_event_of_any_service_can_be_sent(tmp_path: Path) -> None:
    runner.invoke(meters, ["schemas", "export", str(tmp_path)])
    sent = runner.invoke(meters, ["events", "send", str(tmp_path / "meter.read.json")])
    assert sent.output.startswith("sent meter.read 1.0.0 to shop.meter.read: key=text event_id=")

    shown = runner.invoke(meters, ["events", "tail", TOPIC, "--from-beginning", "--limit", "1"])
    assert "ce_source: /shop" in shown.output
    assert f'"event_id": "{sent.output.split("event_id=")[1].split()[0]}"' in shown.output


@pytest.mark.usefixtures("mock_broker")
def test_a_sent_event_keeps_its_id_if_asked_to() -> None:
    event = Moved(meter_id="m-1").model_dump_json()
    kept = runner.invoke(meters, ["events", "send", "-", "--keep-id"], input=event)
    fresh = runner.invoke(meters, ["events", "send", "-"], input=event)

    assert f"event_id={json.loads(event)['event_id']}" in kept.output
    assert "sent meter.moved" in fresh.output
    assert json.loads(event)["event_id"] not in fresh.output


@pytest.mark.usefixtures("mock_broker")
def test_messages_are_shown_from_a_place_on() -> None:
    sent = [
        runner.invoke(meters, ["events", "send", "-"], input=Moved(meter_id=id).model_dump_json())
        for id in ("m-1", "m-2", "m-2")
    ]
    topic = sent[0].output.split(" to ")[1].split(":")[0]
    show = ["topics", "messages", topic]

    newest = runner.invoke(meters, [*show, "--limit", "1"]).output
    assert newest.startswith("20")
    assert (newest.count("key=m-2"), newest.count("key=")) == (1, 1)
    assert "The newest 1." in newest
    of_key = runner.invoke(meters, [*show, "--key", "m-1"]).output
    assert (of_key.count("key=m-1"), of_key.count("key=")) == (1, 1)
    assert "Found 1 with this key among all messages." in of_key
    assert "key=" not in runner.invoke(meters, [*show, "--offset", "9"]).output
    assert "has no such partition" in runner.invoke(meters, [*show, "--partition", "99"]).output
    unknown = runner.invoke(meters, ["topics", "messages", "other"])
    assert "there is no topic other" in unknown.output


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "- is not valid JSON: "),
        ("[]", "- has no event: "),
        ('{"event_type": "meter.sold"}', "there is no event meter.sold; there are: meter.moved"),
        ('{"event_type": "meter.moved"}', "meter.moved: meter_id: Field required"),
    ],
)
def test_what_is_no_event_is_not_sent(text: str, reason: str) -> None:
    result = runner.invoke(meters, ["events", "send", "-"], input=text)

    assert result.exit_code == 1
    assert f"error: {reason}" in result.output


def test_an_event_of_two_services_needs_its_topic() -> None:
    class MovedElsewhere(Moved): ...

    events = [EventType(Moved), EventType(MovedElsewhere, service="shop")]
    both = command_line(lambda: Service([Component("meters", events=events)]))
    result = runner.invoke(both, ["events", "send", "-"], input='{"event_type": "meter.moved"}')

    assert result.exit_code == 1
    assert ".meter.moved or shop.meter.moved" in result.output


@pytest.mark.usefixtures("mock_broker")
def test_foreign_topics_are_listed_with_their_owner() -> None:
    missing = runner.invoke(meters, ["topics", "check"])
    assert missing.exit_code == 1
    assert f"missing   {TOPIC}  owner=shop (shop has to create it)" in missing.output

    event = meter_read().model_dump_json()
    runner.invoke(meters, ["events", "send", "-"], input=event)
    assert f"foreign   {TOPIC}  owner=shop\n" in runner.invoke(meters, ["topics", "list"]).output
    assert f"foreign   {TOPIC}  owner=shop\n" in runner.invoke(meters, ["topics", "check"]).output


def test_what_a_replay_skips_is_printed_with_advice() -> None:
    assert skipped_undecodable(12).startswith("12 skipped")
    assert "app dlq discard --undecodable" in skipped_undecodable(12)


def test_what_has_no_headers_has_a_line_too() -> None:
    assert "key=none" in describe(DeadLetter.of(record(None, None)), applied=False)


def test_the_summary_counts_what_waits_and_what_was_applied() -> None:
    letters = [letter(ValueError("broken"), offset) for offset in range(3)]

    assert summary(letters, {letters[0].identity}) == ("3 dead letters, 2 waiting, 1 applied since")
    assert summary(letters[:1], set()) == "1 dead letter, 1 waiting, 0 applied since"


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 topics"), (1, "1 topic"), (2, "2 topics"), (21, "21 topics")]
)
def test_what_is_counted_is_one_or_many(count: int, said: str) -> None:
    assert counted(count, "topic") == said


def test_words_that_change_otherwise_are_given() -> None:
    assert [counted(n, "differs", "differ") for n in (0, 1, 2)] == [
        "0 differ",
        "1 differs",
        "2 differ",
    ]


def test_times_on_the_command_line_are_utc() -> None:
    assert _utc(datetime(2024, 5, 1)) == datetime(2024, 5, 1, tzinfo=UTC)
    assert _utc(None) is None


def test_a_message_is_shown_with_place_headers_and_body() -> None:
    shown = show(
        record(b'{"a": "\xc3\xa9"}', b"k", partition=2, offset=7, headers=[("ce_id", b"1")])
    )

    assert shown.splitlines() == [
        f"2023-11-14T22:13:20.000+00:00  {TOPIC}[2]@7  key=k",
        "  ce_id: 1",
        "  {",
        '    "a": "é"',
        "  }",
    ]


def test_the_time_of_the_first_delivery_is_shown_as_a_time() -> None:
    headers = [(names.ORIGIN_TIMESTAMP, b"1700000000000"), ("other", b"1700000000000")]
    shown = show(record(headers=headers)).splitlines()

    assert shown[1:3] == [
        "  origin-timestamp: 2023-11-14T22:13:20.000+00:00",
        "  other: 1700000000000",
    ]


@pytest.mark.parametrize("value", [b"", b"soon", b"-1", b"9" * 5000, "²".encode()])
def test_a_header_that_is_no_time_is_shown_as_it_is(value: bytes) -> None:
    shown = show(record(headers=[(names.ORIGIN_TIMESTAMP, value)])).splitlines()

    assert shown[1] == f"  origin-timestamp: {value.decode()}"


def test_what_is_not_there_is_said() -> None:
    shown = show(record(None, None, headers=[("empty", None)]))

    assert shown.endswith("key=none\n  empty: \n  (no value)")


def test_bytes_that_are_no_text_are_shown_escaped() -> None:
    shown = show(record(b"\xff{", b"\xfe", headers=[("raw", b"\xfd")]))

    assert "key=\\xfe" in shown
    assert "raw: \\xfd" in shown
    assert shown.endswith("  \\xff{")


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 100_000,
        b"9" * 5000,
        b"NaN",
        b'"\\ud800"',
        json.dumps([[]] * 3).encode(),
        b"\xed\xa0\x80",
        b"",
    ],
)
def test_any_body_can_be_printed(value: bytes) -> None:
    assert show(record(value)).encode()


@pytest.mark.parametrize("timestamp", [-1, 0, 10**15, 10**18, -(10**18), 2**63 - 1])
def test_any_timestamp_can_be_shown(timestamp: int) -> None:
    assert TOPIC in show(record(timestamp=timestamp))


class SoldOfOrder(BaseEvent):
    event_type: Literal["order.item_sold"] = "order.item_sold"


class OrderOfSold(BaseEvent):
    event_type: Literal["order_item.sold"] = "order_item.sold"


METERS = [EventType(MeterRead)]
MISTAKES: dict[str, tuple[list[EventType], list[Subscription]]] = {
    "no upcaster from version 2": ([EventType(MeterNamed, upcasters={1: named_2})], [BILLING]),
    "MeterRead is not registered: add it to EVENTS": ([], [BILLING]),
    "BaseEvent: event_type is wrong: use Literal": ([EventType(BaseEvent)], [BILLING]),
    "two subscriptions are named billing": (METERS, [BILLING, BILLING]),
    "MeterRead is registered twice": ([*METERS, EventType(MeterRead, service="b")], [BILLING]),
    "differ only in '.' and '_'": ([EventType(SoldOfOrder), EventType(OrderOfSold)], []),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(
    "command",
    ["topics check", "topics list", "asyncapi", "dlq list", "events tail", "worker", "api"],
)
def test_mistakes_in_events_and_consumers_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    mistake: str,
) -> None:
    events, subscriptions = MISTAKES[mistake]
    wrong = Service([Component("wrong", events=events, subscriptions=subscriptions)])
    monkeypatch.setattr(sys, "argv", ["app", *command.split()])
    monkeypatch.setattr(logs, "configure", lambda *_: None)  # that of the tests stays

    with pytest.raises(SystemExit) as end:
        run(lambda: wrong)

    assert str(end.value).startswith("error: wrong events or consumers: ")
    assert mistake in str(end.value)
    assert len(str(end.value).splitlines()) == 1
    assert capsys.readouterr().out == ""


def test_each_event_is_exported_once(tmp_path: Path) -> None:
    first = runner.invoke(cli, ["schemas", "export", str(tmp_path)])
    assert f"{len(wiring.service.events)} schemas written" in first.output
    again = runner.invoke(cli, ["schemas", "export", str(tmp_path)])
    assert "all schemas are exported" in again.output


def test_a_schema_that_is_not_exported_fails_the_check(tmp_path: Path) -> None:
    result = runner.invoke(cli, ["schemas", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert "run `app schemas export`" in result.output


def test_exported_schemas_pass_the_check(tmp_path: Path) -> None:
    runner.invoke(cli, ["schemas", "export", str(tmp_path)])
    assert runner.invoke(cli, ["schemas", "check", str(tmp_path)]).exit_code == 0


@pytest.mark.parametrize("command", ["export", "check"])
def test_an_incompatible_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    runner.invoke(cli, ["schemas", "export", str(tmp_path)])
    monkeypatch.setattr(schemas, "schema_of", lambda _entry: {"type": "object", "properties": {}})
    result = runner.invoke(cli, ["schemas", command, str(tmp_path)])
    assert result.exit_code == 1
    assert "is gone" in result.output
    assert "Traceback" not in result.output


def test_a_refusal_allows_deleting_an_unpublished_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.invoke(cli, ["schemas", "export", str(tmp_path)])
    monkeypatch.setattr(schemas, "schema_of", lambda _entry: {"type": "object", "properties": {}})
    result = runner.invoke(cli, ["schemas", "check", str(tmp_path)])
    file = tmp_path / f"{wiring.service.events[0].name}.json"
    assert f"never published may be deleted from {file}" in result.output
    file.unlink()
    monkeypatch.undo()
    assert runner.invoke(cli, ["schemas", "export", str(tmp_path)]).exit_code == 0


@pytest.mark.parametrize("command", ["export", "check"])
def test_a_major_version_needs_an_upcaster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    entry = EventType(MeterNamed, upcasters={1: named_2})
    monkeypatch.setattr(wiring, "service", Service([Component("meters", events=[entry])]))
    result = runner.invoke(cli, ["schemas", command, str(tmp_path)])
    assert result.exit_code == 1
    assert "error: meter.named 3.1.0: no upcaster from version 2" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_topic_is_one_line_with_what_differs() -> None:
    topic = Topic("shop.meter.read", 3, 2)

    assert topic_line(TopicState(topic, State.PRESENT)) == (
        "present   shop.meter.read  partitions=3 replication=2"
    )
    assert topic_line(TopicState(topic, State.DIFFERENT, "1 partitions")).endswith("(1 partitions)")


INFO = {"title": "Meters", "version": "1.0.0"}


def settings(**options: Any) -> KafkaSettings:
    return KafkaSettings(_env_file=None, **options)


READINGS = Subscription("readings", {MeterRead: handle, MeterNamed: handle})


def described(registry: EventRegistry = REGISTRY) -> dict[str, Any]:
    return document(INFO, registry, [BILLING, READINGS], settings(kafka_group_id="meters"))


def references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from references(inner)


def resolved(whole: Any, reference: str) -> Any:
    for name in reference.removeprefix("#/").split("/"):
        whole = whole[name]
    return whole


@pytest.mark.parametrize("registry", [REGISTRY, EventRegistry("own", wiring.service.events)])
def test_every_reference_in_the_asyncapi_document_resolves(registry: EventRegistry) -> None:
    subscriptions = wiring.service.subscriptions if registry.service == "own" else [BILLING]
    whole = document(INFO, registry, subscriptions, settings())
    found = list(references(whole))

    assert found
    for reference in found:
        assert resolved(whole, reference), reference


def test_every_topic_is_a_channel_with_its_message() -> None:
    channels = described()["channels"]

    assert {channel["address"] for channel in channels.values()} == {TOPIC, NAMED_TOPIC}
    message = channels[TOPIC]["messages"]["meter.read"]
    assert message["payload"] == {"$ref": "#/components/schemas/MeterRead"}
    assert message["bindings"]["kafka"]["key"]["description"] == "The event's meter_id"
    assert channels[NAMED_TOPIC]["messages"]["meter.named"]["title"] == "meter.named 3.1.0"


def test_every_header_of_a_message_is_described() -> None:
    entry = EventType(MeterRead, subject="meter_id", dataschema="https://example.com/{type}.json")
    registry = EventRegistry("shop", [entry])
    (message,) = document(INFO, registry, [], settings())["channels"][TOPIC]["messages"].values()
    headers = [("traceparent", f"00-{1:032x}-{1:016x}-01".encode()), ("tracestate", b"a=1")]
    trace = Trace("correlation-1", causation_id="event-1")
    with bind_trace(trace, context_of(headers)):
        sent = {name for name, _ in encode(meter_read(), registry, trace).headers}

    assert {"ce_subject", "ce_dataschema", "causation-id", "tracestate"} <= sent
    assert set(message["headers"]["properties"]) == sent


def test_own_topics_are_described_as_they_are_created() -> None:
    registry = EventRegistry("shop", [EventType(MeterRead), EventType(Moved, service="trams")])
    channels = document(INFO, registry, [], settings(kafka_topic_partitions=6))["channels"]

    bindings = {name: channel["bindings"]["kafka"] for name, channel in channels.items()}
    assert bindings["trams.meter.moved"] == {
        "topic": "trams.meter.moved",
        "bindingVersion": "0.5.0",
    }
    assert bindings[TOPIC]["partitions"] == 6
    kept = {"cleanup.policy": ["delete"], "retention.ms": 7 * 24 * 3_600_000}
    assert bindings[TOPIC]["topicConfiguration"] == kept


def test_brokers_are_described_with_how_clients_log_in() -> None:
    def servers(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        whole = document(INFO, REGISTRY, [], settings(**options))
        return whole["servers"], whole["components"].get("securitySchemes", {})

    plain = {"kafka-1": {"host": "a:1", "protocol": "kafka"}}
    plain["kafka-2"] = {"host": "b:2", "protocol": "kafka"}
    assert servers(kafka_bootstrap_servers="a:1,b:2") == (plain, {})
    login = {"kafka_sasl_username": "me", "kafka_sasl_password": "secret"}
    found, schemes = servers(kafka_security_protocol="SASL_SSL", **login)
    security = [{"$ref": "#/components/securitySchemes/sasl"}]
    secure = {"host": "localhost:9092", "protocol": "kafka-secure", "security": security}
    assert (found, schemes) == ({"kafka-1": secure}, {"sasl": {"type": "scramSha512"}})


def test_own_events_are_sent_and_those_of_others_are_not() -> None:
    registry = EventRegistry("own", [EventType(MeterRead, service="shop"), EventType(Moved)])
    subscription = Subscription("readings", {MeterRead: handle})
    operations = document(INFO, registry, [subscription], settings())["operations"]

    actions = {name: operation["action"] for name, operation in operations.items()}
    assert actions == {"send.meter.moved": "send", f"receive.readings.{TOPIC}": "receive"}


def test_every_subscription_receives_in_its_group() -> None:
    operations = described()["operations"]
    groups = {
        (operation["channel"]["$ref"], operation["bindings"]["kafka"]["groupId"]["const"])
        for operation in operations.values()
        if operation["action"] == "receive"
    }

    assert groups == {
        (f"#/channels/{TOPIC}", "meters.billing"),
        (f"#/channels/{TOPIC}", "meters.readings"),
        (f"#/channels/{NAMED_TOPIC}", "meters.readings"),
    }


@pytest.mark.parametrize("trace", [Trace("story"), Trace("story", "cause", "00-1-2-01")])
def test_the_headers_of_a_message_are_those_described(trace: Trace) -> None:
    sent = encode(meter_read(), REGISTRY, trace).headers
    said = described()["channels"][TOPIC]["messages"]["meter.read"]["headers"]

    assert set(said["required"]) <= {name for name, _ in sent} <= said["properties"].keys()
    for name, value in sent:
        assert said["properties"][name].get("const", (value or b"").decode()) == (
            (value or b"").decode()
        )


def test_the_document_of_the_service_is_deterministic() -> None:
    first, again = (runner.invoke(cli, ["asyncapi"]) for _ in range(2))

    assert first.exit_code == 0
    assert first.output == again.output
    printed = json.loads(first.output)
    assert printed["asyncapi"] == "3.1.0"
    assert len(printed["channels"]) == len(wiring.service.events)


ESTATE = EventTopic("Meters.v1", CloudEvents())
estate = command_line(
    lambda: Service(
        [
            Component(
                "meters", events=[EventType(MeterRead, service="shop", topic=ESTATE, type="Read")]
            )
        ]
    )
)
BINARY = [f"--header=ce_{name}" for name in ("specversion=1.0", "id=1", "source=/s", "type=Read")]


@pytest.mark.usefixtures("mock_broker")
def test_a_file_is_sent_as_it_is_to_a_topic_with_a_decoder(tmp_path: Path) -> None:
    file = tmp_path / "read.json"
    file.write_bytes(b'{ "meter_id": "m-1", "count": 3 }')
    sent = runner.invoke(
        estate, ["events", "send", str(file), "--topic", "Meters.v1", "--key", "k", *BINARY]
    )
    assert sent.output.startswith("sent meter.read to Meters.v1: event_id=")

    tail = ["events", "tail", "Meters.v1", "--from-beginning", "--limit", "1"]
    shown = runner.invoke(estate, tail)
    assert "key=k" in shown.output
    assert "ce_type: Read" in shown.output
    assert '"meter_id": "m-1"' in shown.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--topic", "Meters.v1"], "CloudEvents: not a CloudEvent: "),
        (["--topic", "Meters.v1", *BINARY[:3], "--header=ce_type=Sold"], "of a type that no event"),
        (["--topic", "Meters.v1", "--header", "=1"], "'=1' is no header: use NAME=VALUE"),
        ([], "has a decoder: send a message in its format with --topic Meters.v1"),
        (["--key", "k"], "--header and --key are for a topic with a decoder"),
    ],
)
def test_what_a_decoder_cannot_read_is_not_sent(options: list[str], reason: str) -> None:
    text = '{"event_type": "meter.read"}'
    result = runner.invoke(estate, ["events", "send", "-", *options], input=text)

    assert result.exit_code == 1
    assert reason in result.output


@pytest.mark.parametrize("command", ["api", "worker", "console", "dev"])
def test_a_process_is_refused_with_all_its_wrong_settings(command: str) -> None:
    wrong = {"LOG_LEVEL": "loud", "DATABASE_POOL_SIZE": "ten", "KAFKA_SEND_TIMEOUT_SECONDS": "0"}
    refused = runner.invoke(estate, [command], env=wrong)

    assert isinstance(refused.exception, ConfigurationError)
    assert all(f"{name}: " in str(refused.exception) for name in wrong)


def test_a_file_without_an_event_is_for_a_topic_with_a_decoder() -> None:
    for options in ([], ["--topic", "Meters"]):
        refused = runner.invoke(estate, ["events", "send", "-", *options], input='{"count": 3}')

        assert refused.exit_code == 1
        assert "with an event_type, or name its topic with --topic Meters.v1" in refused.output


def test_a_traceback_of_a_dead_letter_has_lines() -> None:
    shown = show(letter(raised("broken\x1b[2J")).record)

    assert "\n  error-traceback:\n      File " in shown
    assert "\\n" not in shown
    assert "\x1b" not in shown


def raised(text: str) -> ValueError:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "arguments",
    [("new", "entity", "things"), ("new", "event", "thing.lost"), ("schemas", "check")],
)
def test_another_folder_than_the_services_is_named(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = runner.invoke(cli, arguments)

    assert refused.exit_code == 1
    assert f"{tmp_path} has no " in refused.output
    assert "run this in the service's folder" in refused.output
    assert not [*tmp_path.iterdir()]


def test_an_unreachable_server_may_be_that_of_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert "start `uv run app dev` in this folder" in advice(DatabaseSettings, "DATABASE_URL")
    monkeypatch.chdir(tmp_path)
    assert "run this in the service's folder" in advice(DatabaseSettings, "DATABASE_URL")
