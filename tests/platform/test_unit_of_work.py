"""The transaction of a unit of work, and its events."""

from types import TracebackType
from typing import Any

import pytest
from samples import meter_read

from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import BaseEvent


class Recorder:
    """A record of what happened, in order: a session maker, its sessions, and the publisher bound to them."""

    def __init__(self, commit_error: Exception | None = None) -> None:
        self.happened: list[str] = []
        self._commit_error = commit_error

    def __call__(self) -> "FakeSession":
        self.happened.append("open")
        return FakeSession(self.happened, self._commit_error)

    def bind(self, session: Any) -> "FakePublisher":
        return FakePublisher(self.happened)


class FakeSession:
    def __init__(self, happened: list[str], commit_error: Exception | None) -> None:
        self._happened = happened
        self._commit_error = commit_error

    def begin(self) -> "FakeTransaction":
        return FakeTransaction(self._happened, self._commit_error)

    async def __aenter__(self) -> "FakeSession":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._happened.append("close")


class FakeTransaction:
    def __init__(self, happened: list[str], commit_error: Exception | None) -> None:
        self._happened = happened
        self._commit_error = commit_error

    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self,
        error: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._happened.append("rollback" if error else "commit")
        if error is None and self._commit_error is not None:
            raise self._commit_error


class FakePublisher:
    def __init__(self, happened: list[str]) -> None:
        self._happened = happened

    async def publish(self, event: BaseEvent) -> None:
        self._happened.append("publish")

    async def has_committed(self, error: BaseException) -> bool:
        return False

    async def after_commit(self) -> None:
        self._happened.append("hand on")


def units(recorder: Recorder) -> UnitOfWorkFactory:
    return UnitOfWorkFactory(recorder, recorder.bind)  # type: ignore[arg-type]  # a fake in its place


async def test_events_are_published_after_the_commit() -> None:
    recorder = Recorder()
    async with units(recorder).begin() as uow:
        await uow.events.publish(meter_read())

    assert recorder.happened == ["open", "publish", "commit", "close", "hand on"]


async def test_an_error_rolls_back_and_publishes_nothing() -> None:
    recorder = Recorder()

    async def fail_half_way() -> None:
        async with units(recorder).begin() as uow:
            await uow.events.publish(meter_read())
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await fail_half_way()

    assert recorder.happened == ["open", "publish", "rollback", "close"]


async def test_a_failed_commit_publishes_nothing() -> None:
    recorder = Recorder(commit_error=ConnectionError("away"))
    with pytest.raises(ConnectionError):
        async with units(recorder).begin() as uow:
            await uow.events.publish(meter_read())

    assert recorder.happened == ["open", "publish", "commit", "close"]


async def test_each_unit_of_work_has_a_session_of_its_own() -> None:
    recorder = Recorder()
    async with units(recorder).begin() as first, units(recorder).begin() as second:
        assert first.session is not second.session
        assert first.events is not second.events
