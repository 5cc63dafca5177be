"""The spans of a rebuild."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.trace import StatusCode
from spans import Spans
from typer.testing import CliRunner

from app.platform import telemetry
from app.platform.cli import projections
from app.platform.database.engine import Database
from app.platform.projections import rebuild
from app.platform.projections.projection import Projection
from app.platform.projections.rebuild import Progress, Rebuild

NONE = cast(Any, None)
VIEWS: Projection[Any] = Projection("views", [], NONE)


@asynccontextmanager
async def exclusive(*_asked: object) -> AsyncIterator[None]:
    yield


class Steps(Rebuild[Any]):
    """A rebuild of three rows, in batches of two, without a database."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(cast(Database, None), VIEWS, NONE, 2)
        self._left, self._error = 3, error

    async def register(self) -> None: ...

    async def _fill(self) -> Progress | None:
        if self._error is not None:
            raise self._error
        if self._left == 0:
            return None
        self._left = max(0, self._left - 2)
        return self._progress()

    async def swap(self) -> Progress:
        return self._progress()

    def _progress(self) -> Progress:
        return Progress(3 - self._left, 3, datetime.now(UTC))


@pytest.fixture(autouse=True)
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def abandon(*_asked: object) -> bool:
        return True

    monkeypatch.setattr(rebuild, "exclusive_rebuild", exclusive)
    monkeypatch.setattr(rebuild, "_abandon", abandon)


async def test_a_rebuild_has_a_span_for_each_step(spans: Spans) -> None:
    await Steps().run(lambda _progress: None)

    assert spans.names() == [
        "fill views",
        "fill views",
        "fill views",
        "swap views",
        "rebuild views",
    ]
    *steps, whole = spans.finished()
    assert whole.context is not None
    assert {step.parent.span_id if step.parent else 0 for step in steps} == {whole.context.span_id}
    done = [(step.attributes or {}).get("app.projection.done") for step in steps]
    assert done == [2, 3, None, None]


def test_the_command_sends_its_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    async def on_no_database(work: Callable[[Database], Awaitable[Progress]]) -> Progress:
        return await work(cast(Database, None))

    entry = SimpleNamespace(projection=VIEWS, rebuild=lambda _database, _batch: Steps())
    monkeypatch.setattr(projections, "on_database", on_no_database)
    monkeypatch.setattr(projections, "_find", lambda _ctx, _name: entry)
    found = Spans()
    monkeypatch.setattr(telemetry, "tracer_provider", lambda _name, _settings: found.provider)
    told = CliRunner().invoke(projections.commands, ["projections", "rebuild", "views"])

    assert (told.exit_code, told.exception) == (0, None)
    assert found.names()[-1] == "rebuild views"


async def test_a_rebuild_that_fails_has_a_failed_span(spans: Spans) -> None:
    with pytest.raises(ValueError, match="broken"):
        await Steps(ValueError("broken")).run(lambda _progress: None)

    assert {span.status.status_code for span in spans.finished()} == {StatusCode.ERROR}
