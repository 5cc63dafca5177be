"""Topics, stories, events and the inbox in the console, on real servers."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from browsing import Browser, console_for

from app.platform.console import events, story, topics
from app.platform.console.access import ConsoleSettings
from app.platform.console.app import opened
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.event import EventType
from app.platform.events.schemas import export
from app.platform.kafka.admin import TopicAdmin
from app.platform.kafka.codec import Header, Message
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.subscription import Subscription
from app.platform.runtime import Context
from app.platform.service import Component, Service
from app.platform.story import Step
from tests.world import Counted, World, counted, record_effect

HOSTILE = "</td><script>alert(1)</script>\"'&\N{RIGHT-TO-LEFT OVERRIDE}\x1b[2J"


async def refuse_odd(event: Counted, uow: UnitOfWork) -> None:
    if event.number % 2:
        raise PermanentError(HOSTILE)
    await record_effect(event, uow)


COUNTER = Subscription("counter", {Counted: refuse_odd})


@pytest.fixture
async def browser(world: World, migrated_database_url: str) -> AsyncIterator[Browser]:
    settings = ConsoleSettings(console_masked_fields="secret", _env_file=None)
    context = Context(world.settings, world.registry, [COUNTER])
    part = Component("things", events=[EventType(Counted)], subscriptions=[COUNTER])
    app = console_for(Service([part]), context, migrated_database_url, settings)
    await world.create_topics(COUNTER)
    browser = Browser(app)
    async with opened(app), browser.http:
        yield browser


async def test_topics_are_listed_with_their_kind(browser: Browser, world: World) -> None:
    await world.send(*counted(3))
    page = await browser.get("/topics")
    assert f"{world.topic} own" in page.text
    assert f"{world.topic}.counter.dlq dlq of counter" in page.text
    # Kafka's mock broker describes no settings.
    assert " 3 ok" in page.text or " 3 different" in page.text


async def test_only_topics_of_the_service_are_read(browser: Browser) -> None:
    for path in ("/topics/__consumer_offsets", "/topics/other", "/topics/other/0/0"):
        assert (await browser.get(path)).status == 404


async def test_the_newest_messages_are_shown_first(browser: Browser, world: World) -> None:
    await world.send(*counted(60, keys=1))
    page = await browser.get(f"/topics/{world.topic}")
    offsets = [
        int(link.split("/")[-1])
        for link in page.links
        if "/0/" in link or "/1/" in link or "/2/" in link
    ]
    assert offsets == list(range(59, 9, -1))
    assert "The newest 50." in page.text


async def test_messages_are_found_by_offset_and_partition(browser: Browser, world: World) -> None:
    await world.send(*counted(60, keys=1))
    (partition,) = {record.partition for record in await world.records(world.topic)}
    page = await browser.get(f"/topics/{world.topic}?partition={partition}&offset=55")
    assert [f"{partition}@{n}" in page.text for n in (54, 55, 59)] == [False, True, True]
    assert f"{partition}@55" not in (await browser.get(f"/topics/{world.topic}?offset=56")).text


async def test_messages_are_found_by_key(browser: Browser, world: World) -> None:
    await world.send(*counted(9, keys=3))
    name = counted(1, keys=3)[0].name
    page = await browser.get(f"/topics/{world.topic}?key={name}")
    assert "Found 3 with this key among all messages." in page.text
    none = await browser.get(f"/topics/{world.topic}?key=nothing")
    assert "Found 0 with this key" in none.text


async def test_messages_are_found_by_time(browser: Browser, world: World, real_kafka: str) -> None:
    await world.send(*counted(2))
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    earlier = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    after = await browser.http.get(f"/topics/{world.topic}", params={"time": later})
    before = await browser.http.get(f"/topics/{world.topic}", params={"time": earlier})
    assert after.text.count("@") == 0
    assert before.text.count("@") == 2


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ("partition=99", "It has no such partition."),
        ("time=0001-01-01T00:00:00", "The first 50 from there on."),
        ("time=9999-12-31T23:59:59", "The first 50 from there on."),
        ("offset=999999999999999999", "The first 50 from there on."),
    ],
)
async def test_queries_beyond_the_topic_are_answered(
    browser: Browser, world: World, real_kafka: str, query: str, note: str
) -> None:
    await world.send(*counted(1))
    page = await browser.get(f"/topics/{world.topic}?{query}")
    assert page.status == 200
    assert note in page.text


@pytest.mark.parametrize("query", ["partition=x", "offset=-1", "time=noon", "offset=٣"])
async def test_wrong_queries_say_what_is_right(browser: Browser, world: World, query: str) -> None:
    page = await browser.get(f"/topics/{world.topic}?{query}")
    assert page.status == 400
    assert "use" in page.text


async def test_a_message_is_shown_decoded_and_raw(browser: Browser, world: World) -> None:
    (event,) = counted(1)
    await world.send(event)
    (record,) = await world.records(world.topic)
    page = await browser.get(f"/topics/{world.topic}/{record.partition}/{record.offset}")
    assert page.text.count(str(event.event_id)) >= 2
    assert "Counted" in page.text
    assert any(link.endswith("story?id=story") for link in page.links)
    inbox = f"inbox?id={event.event_id}&topic={world.topic}"
    assert any(link.endswith(inbox) for link in page.links)
    gone = await browser.get(f"/topics/{world.topic}/{record.partition}/99")
    assert gone.status == 404
    assert (await browser.get(f"/topics/{world.topic}/999/0")).status == 404


async def test_masked_fields_are_hidden(browser: Browser, world: World) -> None:
    await world.send_bytes(b'{"secret": "4711", "name": "x"}')
    (record,) = await world.records(world.topic)
    page = await browser.get(f"/topics/{world.topic}/{record.partition}/{record.offset}")
    assert "4711" not in page.response.text
    assert "***" in page.text


@pytest.mark.parametrize(
    "value", [HOSTILE.encode(), json.dumps({HOSTILE: HOSTILE}).encode(), b"\xff\x00", None]
)
async def test_values_of_messages_are_never_html(
    browser: Browser, world: World, value: bytes | None
) -> None:
    headers: tuple[Header, ...] = (
        ("ce_type", HOSTILE.encode()),
        (HOSTILE, HOSTILE.encode()),
        ("empty", None),
        ("correlation-id", b"hostile"),
        ("ce_id", HOSTILE.encode()),
    )
    await world.producer.send(Message(world.topic, HOSTILE.encode(), value, headers))
    (record,) = await world.records(world.topic)
    paths = [
        f"/topics/{world.topic}",
        f"/topics/{world.topic}/{record.partition}/{record.offset}",
        "/story?id=hostile",
    ]
    for path in paths:
        page = await browser.get(path)
        assert page.status == 200
        assert page.tags.count("script") == 1, "the console's own file"
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in page.response.text
        assert "\x1b" not in page.response.text


# Following


async def test_a_follower_misses_nothing_between_two_streams(
    browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "STREAM_SECONDS", 0.5)
    await world.send(*counted(2))
    lines, last_id = await stream(browser, world, "")
    assert lines == []
    await world.send(*counted(3))
    lines, last_id = await stream(browser, world, last_id)
    assert len(lines) == 3
    assert (await stream(browser, world, last_id))[0] == []
    assert browser.app.state.streams == set()


async def stream(browser: Browser, world: World, last_id: str) -> tuple[list[list[str]], str]:
    """Follow until the stream ends; return the rows, and the last id."""
    answer = await browser.http.get(
        f"/topics/{world.topic}/stream", headers={"last-event-id": last_id}, timeout=30
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    fields = [line.split(": ", 1) for line in answer.text.splitlines() if line]
    assert ["event", "ready"] in fields
    rows = [row for name, value in fields if name == "data" for row in json.loads(value)]
    return rows, [value for name, value in fields if name == "id"][-1]


async def test_followers_are_limited(
    browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "MOST_STREAMS", 0)
    assert (await browser.get(f"/topics/{world.topic}/stream")).status == 503


async def test_looking_commits_nothing(browser: Browser, world: World) -> None:
    await world.send(*counted(3))
    async with TopicAdmin.connected(world.settings) as admin:
        before = await admin.groups()
        for path in ("/", "/topics", f"/topics/{world.topic}", "/story?id=story"):
            assert (await browser.get(path)).status == 200
        assert await admin.groups() == before


# Stories, events and the inbox


async def test_a_story_is_told_in_order(browser: Browser, world: World) -> None:
    first, second = counted(2)
    async with world.running(COUNTER):
        await world.send(first, second)
        await world.dead_letters("counter", 1)
    page = await browser.get("/story?id=story")
    assert "3 steps in" in page.text
    assert "failed in counter" in page.text
    assert page.tags.count("circle") == 3
    assert "Nothing is known of other" in (await browser.get("/story?id=other")).text


async def test_a_story_names_what_it_left_out(
    browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "NEWEST", 2)
    await world.send(*counted(5))
    page = await browser.get("/story?id=story")
    assert "2 steps in" in page.text
    assert "app trace reads all" in page.text


def test_steps_are_placed_by_time_and_cause() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    first = Step(began, "topic", "a", event_id="1")
    second = Step(began + timedelta(seconds=1), "topic", "b", event_id="2", causation_id="1")
    third = Step(began + timedelta(seconds=2), "log", "c")
    marks = story.arrange([first, second, third])
    assert [mark.x for mark in marks] == [10, 400, 790]
    assert [mark.cause for mark in marks] == [None, marks[0].y, None]
    assert story.arrange([]) == []


@pytest.mark.parametrize(
    ("topic", "failure", "attempt"),
    [
        ("a.b.c", None, None),
        ("a.b.c.counter.dlq", "failed in counter: away", None),
        ("a.b.c.counter.replay", None, "replayed to counter"),
        ("a.b.c.counter.retry.5s", None, "a later attempt of counter, after: away"),
    ],
)
def test_only_a_dead_letter_is_a_failure(
    topic: str, failure: str | None, attempt: str | None
) -> None:
    consumer, error = (None, None) if topic == "a.b.c" else ("counter", "away")
    step = Step(datetime.now(UTC), "topic", "", topic=topic, consumer=consumer, error=error)
    assert (step.failure, step.attempt) == (failure, attempt)


async def test_the_inbox_says_who_has_applied_an_event(browser: Browser, world: World) -> None:
    first, second = counted(2)
    even, odd = sorted([first, second], key=lambda event: event.number % 2)
    async with world.running(COUNTER):
        await world.send(even, odd)
        await world.dead_letters("counter", 1)
        await world.has_effects(1)
    assert "counter 2" in (await browser.get(f"/inbox?id={even.event_id}")).text
    for id in (odd.event_id, uuid4()):
        assert "counter not applied" in (await browser.get(f"/inbox?id={id}")).text
    of_topic = await browser.get(f"/inbox?id={odd.event_id}&topic={world.topic}")
    assert "or longer ago than that" in of_topic.text
    assert "or not an event that it reads" not in of_topic.text
    other = await browser.get(f"/inbox?id={even.event_id}&topic=other")
    assert "No consumer of this service reads other." in other.text
    assert f"{world.settings.inbox_retention_hours} hours" in other.text
    assert (await browser.get("/inbox?id=7")).status == 400
    assert (await browser.get("/inbox")).status == 200


async def test_events_lead_to_their_schemas(browser: Browser, world: World) -> None:
    page = await browser.get("/events")
    assert f"thing.counted 1.0.0 {world.topic} this service counter" in page.text
    schema = await browser.get("/events/thing.counted")
    assert '"number"' in schema.text
    assert (await browser.get("/events/nothing")).status == 404
    document = (await browser.http.get("/asyncapi.json")).json()
    assert document["asyncapi"] == "3.1.0"


async def test_versions_of_an_event_are_compared(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = await browser.get("/events/thing.counted")
    assert "No version of it is kept in tests/contracts of this process" in nothing.text

    monkeypatch.setattr(events, "KEPT_SCHEMAS", tmp_path)
    (file,) = export([EventType(Counted)], tmp_path)
    page = await browser.get("/events/thing.counted")
    assert "The code agrees with what is kept" in page.text
    assert "1.0.0 1.0.0 in the code none can read the new one" in page.text

    kept = json.loads(file.read_text())
    kept["1.0.0"]["schema"]["properties"]["<b>colour"] = {"type": "string"}
    kept["1.0.0"]["schema"]["required"] = ["<b>colour"]
    file.write_text(json.dumps(kept))
    page = await browser.get("/events/thing.counted")
    assert "Readers would fail: revert it, or make it version 2.0.0" in page.text
    assert '<span class="bad">&lt;b&gt;colour: is gone</span>' in page.response.text
    assert "b" not in page.tags
    file.write_text("{")
    assert (await browser.get("/events/thing.counted")).status == 409
