"""Dead letters in the console, on real servers: the same effects as `app dlq`."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from aiokafka import ConsumerRecord
from browsing import Browser, Page, console_for

from app import wiring
from app.platform.console import letters as console_letters
from app.platform.console.access import ConsoleSettings
from app.platform.console.app import opened
from app.platform.console.letters import bars
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.event import EventType
from app.platform.kafka import codec as names
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.subscription import Subscription
from app.platform.runtime import Context
from app.platform.service import Component, Service
from tests.fixtures import eventually
from tests.world import Counted, World, counted, record_effect, run_cli


async def refuse(event: Counted, uow: UnitOfWork) -> None:
    raise ValueError("<b>odd</b>") if event.number % 2 else PermanentError("even")


FIRST, SECOND = Subscription("first", {Counted: refuse}), Subscription("second", {Counted: refuse})
CORRECTED = [Subscription(name, {Counted: record_effect}) for name in ("first", "second")]

Open = Callable[..., Awaitable[Browser]]


def service_of(*subscriptions: Subscription) -> Service:
    return Service(
        [Component("things", events=[EventType(Counted)], subscriptions=[*subscriptions])]
    )


@pytest.fixture
async def console(world: World, migrated_database_url: str) -> AsyncIterator[Open]:
    """A browser at the console of the world's service, whose code has these subscriptions."""
    stack: list[Browser] = []

    async def open_one(
        *subscriptions: Subscription, settings: ConsoleSettings | None = None
    ) -> Browser:
        context = Context(world.settings, world.registry, subscriptions)
        service = service_of(*subscriptions)
        stack.append(Browser(console_for(service, context, migrated_database_url, settings)))
        return stack[-1]

    yield open_one
    for browser in stack:
        await browser.http.aclose()
        async with opened(browser.app):
            pass


@pytest.fixture
def command(
    world: World, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Awaitable[str]]:
    """`app …` of the world's service, whose code has both subscriptions; what it prints."""
    name = world.registry.service
    for variable in ("SERVICE_NAME", "KAFKA_CLIENT_ID", "KAFKA_GROUP_ID"):
        monkeypatch.setenv(variable, name)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", world.settings.kafka_bootstrap_servers)
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)
    monkeypatch.setattr(wiring, "service", service_of(FIRST, SECOND))

    async def run(*arguments: str) -> str:
        return (await run_cli(*arguments)).output

    return run


async def fail(world: World, count: int, *subscriptions: Subscription) -> None:
    """Each of the subscriptions refuses `count` messages."""
    async with world.running(*subscriptions):
        for event in counted(count):
            await world.send(event)
        for each in subscriptions:
            await world.dead_letters(each.name, count)


async def act(browser: Browser, plan: str) -> Page:
    """Open the page of a plan, do what it says, and return the page of the finished job."""
    return await finish(browser, await browser.submit(await browser.get(plan), "letters/start"))


async def finish(browser: Browser, page: Page) -> Page:
    """Return the page of a job once it no longer runs."""
    path = page.response.url.path
    return await eventually(lambda: browser.get(path), lambda page: "running" not in page.text)


def without_history(records: list[ConsumerRecord]) -> list[tuple[object, ...]]:
    """The parts that two consumers' messages share: all but names, times and traces."""
    own = {names.CONSUMER, names.REPLAYED_AT, names.FIRST_FAILED_AT, names.LAST_FAILED_AT}
    own |= {names.ATTEMPT_TRACEPARENT, names.TRACEPARENT, names.DISCARDS_TIMESTAMP}
    found = []
    for record in records:
        headers = [(n, v) for n, v in record.headers if n not in own]
        discards = [v.split(b".")[-1] for n, v in headers if n == names.DISCARDS and v]
        headers = [(n, v) for n, v in headers if n != names.DISCARDS]
        found.append((record.key, record.value, record.partition, headers, discards))
    return sorted(found, key=repr)


def assert_alike(first: list[ConsumerRecord], second: list[ConsumerRecord]) -> None:
    """The messages of two consumers differ in nothing else."""
    assert len(first) == len(second)
    for one, other in zip(without_history(first), without_history(second), strict=True):
        assert one == other


async def test_the_console_has_the_effects_of_the_command_line(
    world: World, console: Open, command: Callable[..., Awaitable[str]]
) -> None:
    await fail(world, 6, FIRST, SECOND)
    browser = await console(FIRST, SECOND)

    await command("dlq", "discard", "--consumer", "first", "--error", "valueerror")
    discarded = await act(browser, "/letters/plan?action=discard&consumer=second&error=valueerror")
    assert "second: discarded 3 discarded 3 of 3" in discarded.text
    letters = [await world.records(f"{world.topic}.{name}.dlq") for name in ("first", "second")]
    assert_alike(*letters)
    assert len(letters[1]) == 6 + 3

    async with world.running(*CORRECTED):
        await command("dlq", "replay", "--consumer", "first", "--wait")
        replayed = await act(browser, "/letters/plan?action=replay&consumer=second")
        assert "finished" in replayed.text
        assert "second: sent 3 sent 3 of 3 applied 3, failed again 0, pending 0" in replayed.text
        await world.has_effects(6)
    sent = [await world.records(f"{world.topic}.{name}.replay") for name in ("first", "second")]
    assert len(sent[1]) == 3
    assert_alike(*sent)

    listed = await command("dlq", "list")
    page = await browser.get("/letters")
    assert "6 dead letters, 0 waiting, 6 applied since" in listed
    assert "6 dead letters, 0 waiting, 6 applied since." in page.text
    for line in listed.splitlines()[:6]:
        assert f"{line.split()[0]} applied" in page.text


async def test_letters_are_grouped_by_consumer_and_error(
    world: World, console: Open, command: Callable[..., Awaitable[str]]
) -> None:
    await fail(world, 5, FIRST)
    page = await (await console(FIRST)).get("/letters")
    printed = await command("dlq", "groups", "--consumer", "first")

    assert re.search(
        "^3, 3 waiting  last 20.*  consumer=first error=PermanentError$", printed, re.M
    )
    assert printed.endswith("5 dead letters, 5 waiting, 0 applied since\n")
    assert "5 dead letters, 5 waiting, 0 applied since." in page.text
    assert "first PermanentError 3 3" in page.text
    assert "first ValueError 2 2" in page.text
    assert "rect" in page.tags
    assert "b" not in page.tags  # of the error's message
    assert "style=" not in page.response.text
    odd = await (await console(FIRST)).get("/letters?error=ValueError&key=key-1")
    assert "1 dead letter, 1 waiting" in odd.text


async def test_a_letter_is_shown_whole(world: World, console: Open) -> None:
    await fail(world, 2, FIRST)
    settings = ConsoleSettings(console_masked_fields="number", _env_file=None)
    open_page = await console(FIRST)
    masking = await console(FIRST, settings=settings)
    (letter,) = [r for r in await world.records(f"{world.topic}.first.dlq") if r.key == b"key-1"]
    place = f"/letters/{letter.topic}:{letter.partition}:{letter.offset}"
    page = await open_page.get(place)

    assert "applied since no" in page.text
    assert "ValueError: <b>odd</b>" in page.text
    assert "b" not in page.tags
    assert '"number": 1 } As this version decodes it Counted, the same.' in page.text
    assert "Where it failed File" in page.text
    assert "in refuse" in page.text
    for name, value in letter.headers:
        if name != names.ERROR_TRACEBACK:
            assert f"{name} {value.decode()}" in page.text
    masked = (await masking.get(place)).text
    assert '"number": "***"' in masked
    assert '"number": 1' not in masked
    assert (await open_page.get("/letters/nothing:0:0")).status == 404


async def test_what_cannot_be_decoded_is_replayed_if_asked_for(world: World, console: Open) -> None:
    async with world.running(FIRST):
        await world.send_bytes(b"\xff<script>")
        (letter,) = await world.dead_letters("first", 1)
    browser = await console(FIRST)
    page = await browser.get(f"/letters/{letter.topic}:{letter.partition}:{letter.offset}")

    assert "Body \\xff<script> As this version decodes it" in page.text
    assert page.tags.count("script") == 1  # the console's own
    assert "As this version decodes it Counted, the same." not in page.text
    plan = await browser.get("/letters/plan?action=replay")
    assert "Replay 0 dead letters" in plan.text
    assert "1 skipped, because this version of the service cannot decode them" in plan.text
    asked = await browser.get("/letters/plan?action=replay&undecodable=1")
    assert "Replay 1 dead letter " in asked.text


async def test_a_plan_sends_nothing(world: World, console: Open) -> None:
    await fail(world, 2, FIRST)
    reader = await console(FIRST, settings=ConsoleSettings(_env_file=None))
    browser = await console(FIRST)
    plan = await browser.get("/letters/plan?action=replay")

    assert "Replay 2 dead letters" in plan.text
    assert await world.records(f"{world.topic}.first.replay") == []
    read_only = await reader.get("/letters/plan?action=replay")
    assert [form for form in read_only.forms if form.method == "post"] == []
    form = plan.form("letters/start")
    token = reader.http.cookies["console_token"]
    refused = await reader.post("/letters/start", form.fields | {"token": token})
    assert refused.status == 403
    assert await world.records(f"{world.topic}.first.replay") == []


async def test_only_letters_that_were_shown_are_sent(world: World, console: Open) -> None:
    await fail(world, 2, FIRST)
    browser = await console(FIRST)
    plan = await browser.get("/letters/plan?action=discard")
    one = plan.form("letters/start").fields["ids"].split()[0]
    await act(browser, f"/letters/plan?action=discard&id={one}")
    async with world.running(FIRST):
        await world.send(*counted(1))
        await world.dead_letters("first", 4)

    done = await finish(browser, await browser.submit(plan, "letters/start"))
    assert "discarded 1 of 1" in done.text
    assert "1 of the page left out" in done.text
    assert "1 dead letter, 1 waiting" in (await browser.get("/letters")).text


async def test_older_letters_are_left_out_and_the_page_says_so(
    world: World, console: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_letters, "NEWEST", 3)
    await fail(world, 5, FIRST)
    browser = await console(FIRST)

    page = await browser.get("/letters")
    assert "3 dead letters, 3 waiting" in page.text
    assert "Only the newest 3 messages" in page.text
    done = await act(browser, "/letters/plan?action=discard")
    assert "discarded 3 of 3" in done.text
    assert len(await world.records(f"{world.topic}.first.dlq")) == 5 + 3


async def test_letters_of_a_removed_consumer_go_to_another(
    world: World, console: Open, real_kafka: str
) -> None:
    await fail(world, 3, FIRST)
    (_, second) = CORRECTED
    await world.create_topics(second)
    browser = await console(second)
    assert f"3 waiting from {world.topic} in first" in (await browser.get("/letters")).text

    nothing = await browser.get("/letters/plan?action=replay&consumer=first")
    assert "Replay 0 dead letters" in nothing.text
    assert "To another consumer second" in nothing.text
    world.settings = world.settings.model_copy(update={"kafka_auto_offset_reset": "latest"})
    async with world.running(second):
        done = await act(browser, "/letters/plan?action=replay&consumer=first&to=second")
        assert "applied 3, failed again 0, pending 0" in done.text
        assert len(await world.effects()) == 3


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/letters?consumer=nobody", "there is no consumer nobody; there are: first"),
        ("/letters?topic=nothing", "no consumer reads the topic nothing; they read: "),
        ("/letters?since=now", "'now' is no time"),
        ("/letters/plan?action=delete", "there is no action 'delete'"),
        ("/letters/plan?action=replay&to=first", "no consumer selected"),
    ],
)
async def test_what_cannot_be_selected_is_refused(
    world: World, console: Open, url: str, said: str
) -> None:
    await world.create_topics(FIRST)
    page = await (await console(FIRST)).get(url)
    assert page.status == 400
    assert said in unescape(page.text)


def test_bars_count_the_failures_over_time() -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    span = [start, start + timedelta(hours=24)]
    assert bars([], span) == []
    assert bars([start], [start]) == [(0.0, 24.0)]
    times = [start + timedelta(hours=hours) for hours in (0, 0.5, 12, 24)]
    assert bars(times, span) == [(0.0, 24.0), (60.0, 12.0), (115.0, 12.0)]
