"""Dead letters on real servers: which count, and where they can go."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from app import wiring
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.dead_letters import selection
from app.platform.dead_letters.selection import SelectionRefused
from app.platform.events.event import EventType
from app.platform.kafka import dead_letters
from app.platform.kafka.dead_letters import Filter, current_letters, read_dead_letters
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.settings import client_options
from app.platform.kafka.subscription import RetryPolicy, Subscription
from app.platform.runtime import Context
from app.platform.service import Component, Service
from tests.fixtures import eventually
from tests.world import Counted, World, counted, failing, record_effect, run_cli

REFUSING = Subscription("counter", {Counted: failing(99, PermanentError("refused"))})


async def delete_topic(world: World, topic: str) -> None:
    """Delete `topic`, and wait until the broker knows nothing of it."""
    admin = AIOKafkaAdminClient(**client_options(world.settings))
    await admin.start()
    try:
        await admin.delete_topics([topic])
        await eventually(admin.list_topics, lambda found: topic not in found)
    finally:
        await admin.close()


async def test_letters_from_a_recreated_topic_all_count(world: World, real_kafka: str) -> None:
    first, second = counted(2, keys=1)
    async with world.running(REFUSING):
        await world.send(first)
        await world.dead_letters("counter", 1)
    await delete_topic(world, world.topic)
    async with world.running(REFUSING):
        await world.send(second)
        await world.dead_letters("counter", 2)
    letters = current_letters(
        [x async for x in read_dead_letters(world.settings, [f"{world.topic}.counter.dlq"])]
    )
    assert len({(x.origin_partition, x.origin_offset) for x in letters}) == 1
    assert {x.event_id for x in letters} == {first.event_id, second.event_id}


# Removed consumers

Command = Callable[..., Awaitable[str]]


@pytest.fixture
def command(world: World, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`app …` of the world's service, whose code has these subscriptions; what it prints."""
    service = world.registry.service
    for name, value in {
        "SERVICE_NAME": service,
        "KAFKA_CLIENT_ID": service,
        "KAFKA_GROUP_ID": service,
        "KAFKA_BOOTSTRAP_SERVERS": world.settings.kafka_bootstrap_servers,
        "DATABASE_URL": migrated_database_url,
    }.items():
        monkeypatch.setenv(name, value)

    async def run(subscriptions: list[Subscription], *arguments: str) -> str:
        part = Component("things", events=[EventType(Counted)], subscriptions=subscriptions)
        monkeypatch.setattr(wiring, "service", Service([part]))
        return (await run_cli(*arguments)).output

    return run


async def fail(event: Counted, uow: UnitOfWork) -> None:
    """For good where the number is even, and otherwise only for now."""
    raise PermanentError("refused") if event.number % 2 == 0 else RuntimeError("for now")


LATER = RetryPolicy(attempts=1, retry_after=[timedelta(hours=1)])
OLD = Subscription("old", {Counted: fail}, retry=LATER)
NEW = Subscription("new", {Counted: record_effect})


async def fails_three_times(world: World, command: Command) -> None:
    """Of three messages of the consumer `old` two are dead letters and one waits for its delay."""
    async with world.running(OLD):
        await world.send(*counted(3))
        await world.dead_letters("old", 2)
        await eventually(
            lambda: world.records(f"{world.topic}.old.retry.1h"), lambda found: len(found) == 1
        )
        refused = await command([NEW], "dlq", "replay", "--consumer", "old", "--to", "new")
    assert "error: a process still runs the consumer old, so both would" in refused


async def test_dead_letters_of_a_renamed_consumer_can_be_handed_to_it(
    world: World, command: Command, real_kafka: str
) -> None:
    await fails_three_times(world, command)
    await command([OLD], "dlq", "replay")  # sent twice, and still the same messages
    await world.create_topics(NEW)

    listed = await command([NEW], "dlq", "list")
    assert "3 dead letters, 3 waiting, 0 applied since" in listed
    assert f"3 waiting from {world.topic} in old" in listed
    assert "`app dlq replay --consumer old --to NAME` sends them to new" in listed
    topics = await command([NEW], "topics", "list")
    assert f"orphaned  {world.topic}.old.replay  messages=2 (see `app dlq list" in topics
    assert f"orphaned  {world.topic}.old.retry.1h  messages=1 (see" in topics
    assert f"orphaned  {world.topic}.old.replay" in await command([NEW], "topics", "check")
    assert "sent 0 of 0" in await command([NEW], "dlq", "replay")

    arguments = ("dlq", "replay", "--consumer", "old", "--to", "new")
    assert "sent 3 of 3" in await command([NEW], *arguments)
    assert "0 dead letters" in await command([NEW], "dlq", "list")
    assert "sent 0 of 0" in await command([NEW], *arguments)
    # So that what it reads is what it was handed.
    world.settings = world.settings.model_copy(update={"kafka_auto_offset_reset": "latest"})
    async with world.running(NEW):
        effects = await world.has_effects(3)
    assert sorted(number for _, number in effects) == [0, 1, 2]


async def test_dead_letters_of_an_unread_event_can_be_discarded(
    world: World, command: Command, real_kafka: str
) -> None:
    await fails_three_times(world, command)
    listed = await command([], "dlq", "list")
    assert f"3 waiting from {world.topic} in old, which no longer reads it" in listed
    assert f"`app dlq discard --consumer old --topic {world.topic}` discards them" in listed
    letter = next(line for line in listed.splitlines() if ".retry.1h:" in line)
    assert "RuntimeError" in await command([], "dlq", "show", letter.split()[0])
    assert "discarded 3 of 3" in await command([], "dlq", "discard", "--consumer", "old")
    assert "0 dead letters" in await command([], "dlq", "list")


async def test_messages_on_a_removed_delay_topic_are_replayed(
    world: World, command: Command, real_kafka: str
) -> None:
    await fails_three_times(world, command)
    repaired = Subscription("old", {Counted: record_effect})
    listed = await command([repaired], "dlq", "list")
    assert "3 dead letters, 3 waiting" in listed
    assert "no longer reads" not in listed
    assert "sent 3 of 3" in await command([repaired], "dlq", "replay")
    async with world.running(repaired):
        await world.has_effects(3)
    assert "3 dead letters, 0 waiting, 3 applied since" in await command([repaired], "dlq", "list")
    # What the consumer had taken from its replay topic does not wait there when it has gone.
    assert f"{world.topic}.old.replay  messages=0" in await command([NEW], "topics", "list")


async def test_dead_letters_of_another_service_are_not_listed(
    world: World, command: Command, real_kafka: str
) -> None:
    own = world.settings
    world.settings = own.model_copy(update={"kafka_group_id": f"other-{own.kafka_group_id}"})
    async with world.running(Subscription("old", {Counted: fail})):
        await world.send(*counted(1))
        await world.dead_letters("old", 1)
    assert "0 dead letters" in await command([NEW], "dlq", "list")
    assert "orphaned" not in await command([NEW], "topics", "list")


async def test_a_replay_waits_for_the_outcome_of_each_message(
    world: World, command: Command
) -> None:
    async def refuse_first(event: Counted, uow: UnitOfWork) -> None:
        if event.number == 0:
            raise PermanentError("refused again")
        await record_effect(event, uow)

    async with world.running(REFUSING):
        await world.send(*counted(2))
        await world.dead_letters("counter", 2)
    corrected = Subscription("counter", {Counted: refuse_first})
    async with world.running(corrected):
        said = await command([corrected], "dlq", "replay", "--wait")
    assert "sent 2 of 2" in said
    assert "applied 1, failed again 1, pending 0" in said
    late = await command([corrected], "dlq", "replay", "--wait", "--timeout", "1")
    assert "applied 0, failed again 0, pending 1" in late
    assert len(await world.effects()) == 1


async def test_letters_are_replayed_and_discarded_by_their_ids(
    world: World, command: Command
) -> None:
    async with world.running(REFUSING):
        await world.send(*counted(3))
        await world.dead_letters("counter", 3)
    listed = await command([REFUSING], "dlq", "list")
    first, second, third = (line.split()[0] for line in listed.splitlines()[:3])

    refused = await command([REFUSING], "dlq", "discard", first, f"{first}0")
    assert f"error: there is no dead letter {first}0 " in refused
    assert "discarded 1 of 1" in await command([REFUSING], "dlq", "discard", first)
    said = await command([REFUSING], "dlq", "replay", third, third, "--dry-run")
    assert f"would replay {third}" in said
    assert "1 dead letter, 1 waiting" in said
    assert "sent 1 of 1" in await command([REFUSING], "dlq", "replay", third)
    assert second in await command([REFUSING], "dlq", "list")


async def test_only_the_newest_letters_are_read_if_asked_for(world: World) -> None:
    context = Context(world.settings, world.registry, [REFUSING])
    async with world.running(REFUSING):
        for event in counted(8):
            await world.send(event)
        await world.dead_letters("counter", 8)
    every = await selection.find(context, world.database, Filter(), False)
    some = await selection.find(context, world.database, Filter(), False, newest=3)
    enough = await selection.find(context, world.database, Filter(), False, newest=8)

    by_time = sorted(every.letters, key=lambda letter: letter.record.timestamp)
    assert [letter.id for letter in some.letters] == [letter.id for letter in by_time[-3:]]
    assert (some.has_older, enough.has_older, every.has_older) == (True, False, False)
    assert {x.id for x in enough.letters} == {x.id for x in every.letters}


async def test_the_newest_letters_leave_out_what_no_longer_waits(
    world: World, command: Command, real_kafka: str
) -> None:
    await fails_three_times(world, command)
    context = Context(world.settings, world.registry, [])
    newest = await selection.find(context, world.database, Filter("old"), False, newest=100)
    assert len(newest.waiting) == 3
    await command([], "dlq", "discard", "--consumer", "old")
    newest = await selection.find(context, world.database, Filter("old"), False, newest=100)
    assert newest.letters == []
    repaired = Context(world.settings, world.registry, [OLD])
    await command([OLD], "dlq", "replay")
    newest = await selection.find(repaired, world.database, Filter(), False, newest=100)
    assert newest.letters == []


async def test_one_letter_is_shown_without_reading_the_others(
    world: World, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.running(REFUSING):
        await world.send(*counted(3, keys=1))
        letters = await world.dead_letters("counter", 3)
    monkeypatch.delattr(dead_letters, "read_to_end")
    wanted = letters[1]
    place = f"{wanted.topic}:{wanted.partition}"
    shown = await command([REFUSING], "dlq", "show", f"{place}:{wanted.offset}")

    assert f"@{wanted.offset}  key=key-0" in shown
    assert '"number": 1' in shown


@pytest.mark.parametrize("place", ["", ":", ":0:99", ":99:0", ":0:-1", ":0:x", ":00:0", ":0:0:0"])
async def test_an_id_of_no_letter_is_refused(world: World, place: str) -> None:
    await world.create_topics(REFUSING)
    context = Context(world.settings, world.registry, [REFUSING])
    async with world.running(REFUSING):
        await world.send(*counted(5))
        await world.dead_letters("counter", 5)
    with pytest.raises(SelectionRefused, match=r"there is no dead letter .*: run `app dlq list`"):
        await selection.find_one(context, f"{world.topic}.counter.dlq{place}")


async def test_a_message_of_another_topic_is_no_letter(world: World) -> None:
    await world.create_topics(REFUSING)
    context = Context(world.settings, world.registry, [REFUSING])
    await world.send(*counted(20))
    event = (await world.records(world.topic))[0]
    with pytest.raises(SelectionRefused, match="there is no dead letter"):
        await selection.find_one(context, f"{event.topic}:{event.partition}:{event.offset}")
