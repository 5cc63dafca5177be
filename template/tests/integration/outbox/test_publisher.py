"""Rows are part of the transaction that publishes, whatever happens to it."""

from contextlib import suppress

import pytest

from app import tracing
from app.kafka.codec import encode
from app.kafka.errors import MessageTooLarge
from app.outbox.store import oldest
from app.tracing import Trace
from tests.integration.outbox.conftest import MAX_BYTES, Moved, World, moved


async def numbers(world: World) -> list[int]:
    return [Moved.model_validate_json(row["value"]).number for row in await world.rows()]  # type: ignore[arg-type]  # bytes


async def test_what_is_published_is_there_once_the_transaction_has_committed(world: World) -> None:
    async with world.units.begin() as uow:
        await uow.events.publish(moved(1)[0])
        assert await world.rows() == []
    assert await numbers(world) == [0]


async def test_nothing_remains_of_a_transaction_that_fails(world: World) -> None:
    with suppress(RuntimeError):
        async with world.units.begin() as uow:
            await uow.events.publish(moved(1)[0])
            raise RuntimeError("after publishing")
    assert await world.rows() == []
    assert not world.published.is_set()


async def test_ids_ascend_in_the_order_of_publishing(world: World) -> None:
    await world.write(*moved(100))
    assert await numbers(world) == list(range(100))


async def test_an_event_that_could_never_be_sent_fails_its_transaction(world: World) -> None:
    with pytest.raises(MessageTooLarge, match="more than KAFKA_MAX_MESSAGE_BYTES=100000"):
        await world.write(
            Moved(name="k", number=1), Moved(name="k", number=2, load="x" * MAX_BYTES)
        )
    assert await world.rows() == []


async def test_an_event_that_nobody_registered_fails_its_transaction(world: World) -> None:
    class Unheard(Moved):
        pass

    with pytest.raises(LookupError, match="add it to EVENTS"):
        await world.write(Unheard(name="k", number=1))


async def test_the_row_holds_the_very_message_that_the_codec_wrote(world: World) -> None:
    event = Moved(name="k-\N{SNOWMAN}", number=1)
    trace = Trace("story", "cause", tracing.child_of(None))
    with tracing.bound(trace):
        await world.write(event)
    buckets = [row["bucket"] for row in await world.rows()]
    async with world.database.engine.connect() as connection:
        (row,), _ = await oldest(connection, buckets, 10, 1_000_000)  # type: ignore[arg-type]  # numbers
    message = encode(event, world.registry, trace)
    assert (row.message.topic, row.message.key, row.message.value) == (
        message.topic,
        message.key,
        message.value,
    )
    assert dict(row.message.headers) == dict(message.headers)


async def test_what_a_savepoint_published_goes_with_it(world: World) -> None:
    first, second, third = moved(3)
    async with world.units.begin() as uow:
        await uow.events.publish(first)
        with suppress(RuntimeError):
            async with uow.session.begin_nested():
                await uow.events.publish(second)
                raise RuntimeError("in the savepoint")
        await uow.events.publish(third)
    assert await numbers(world) == [0, 2]


async def test_what_a_released_savepoint_published_stays_in_its_place(world: World) -> None:
    first, second, third = moved(3)
    async with world.units.begin() as uow:
        await uow.events.publish(first)
        async with uow.session.begin_nested():
            await uow.events.publish(second)
        await uow.events.publish(third)
    assert await numbers(world) == [0, 1, 2]


async def test_an_outer_savepoint_takes_back_what_an_inner_one_released(world: World) -> None:
    first, second, third = moved(3)
    async with world.units.begin() as uow:
        await uow.events.publish(first)
        with suppress(RuntimeError):
            async with uow.session.begin_nested():
                async with uow.session.begin_nested():
                    await uow.events.publish(second)
                raise RuntimeError("in the outer savepoint")
        await uow.events.publish(third)
    assert await numbers(world) == [0, 2]


async def test_a_savepoint_that_cannot_be_released_takes_nothing_from_before(
    world: World,
) -> None:
    first, second = moved(2)
    async with world.units.begin() as uow:
        await uow.events.publish(first)
        with suppress(RuntimeError):
            async with uow.session.begin_nested() as savepoint:
                await uow.events.publish(second)
                await uow.session.run_sync(lambda session: session.dispatch.before_commit(session))
                assert savepoint.is_active
                raise RuntimeError("after the rows were written")
    assert await numbers(world) == [0]


async def test_a_commit_wakes_the_relay_of_its_process(world: World) -> None:
    await world.write()
    assert not world.published.is_set()
    await world.write(moved(1)[0])
    assert world.published.is_set()
