"""The spans of a rebuild."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from opentelemetry.trace import StatusCode
from spans import Spans

from app.platform.database.engine import Database
from app.platform.projections import rebuild
from app.platform.projections.projection import Projection
from app.platform.projections.rebuild import Progress, Rebuild

NONE = cast(Any, None)


@asynccontextmanager
async def exclusive(*_asked: object) -> AsyncIterator[None]:
    yield


class Steps(Rebuild[Any]):
    """A rebuild of three rows, in batches of two, without a database."""

    def __init__(self, error: Exception | None = None) -> None:
        views: Projection[Any] = Projection("views", [], NONE)
        super().__init__(cast(Database, None), views, NONE, 2)
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


async def test_a_rebuild_that_fails_has_a_failed_span(spans: Spans) -> None:
    with pytest.raises(ValueError, match="broken"):
        await Steps(ValueError("broken")).run(lambda _progress: None)

    assert {span.status.status_code for span in spans.finished()} == {StatusCode.ERROR}
