import asyncio

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from app.tracing import Trace, bound, child_of, current, trace_from

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_work_without_a_trace_begins_one() -> None:
    assert current().correlation_id != current().correlation_id


def test_work_in_a_block_belongs_to_its_trace() -> None:
    outer, inner = Trace("outer"), Trace("inner")
    with bound(outer):
        with bound(inner):
            assert current() is inner
        assert current() is outer
    assert current() is not outer


def test_a_block_that_fails_ends_its_trace() -> None:
    with pytest.raises(ValueError, match="broken"), bound(Trace("story")):
        raise ValueError("broken")

    assert current().correlation_id != "story"
    assert structlog.contextvars.get_contextvars() == {}


def test_the_log_lines_of_a_block_have_its_correlation_id() -> None:
    with bound(Trace("story")):
        assert structlog.contextvars.get_contextvars() == {"correlation_id": "story"}


async def test_traces_of_tasks_side_by_side_do_not_mix() -> None:
    async def work(name: str) -> str:
        with bound(Trace(name)):
            await asyncio.sleep(0)
            return current().correlation_id

    assert await asyncio.gather(*map(work, "abc")) == ["a", "b", "c"]


@pytest.mark.parametrize("given", ["story", "6f1c9a3e-3f0b-4c55", "a/b+c=d:e.f_g", "x" * 128])
def test_a_good_correlation_id_is_kept(given: str) -> None:
    assert trace_from(given, None).correlation_id == given


@pytest.mark.parametrize(
    "given", [None, "", "a b", "a\nb", "story\n", "<script>", "né", "\x00", "\ud800", "x" * 129]
)
def test_a_correlation_id_that_must_not_reach_the_logs_is_replaced(given: str | None) -> None:
    assert len(trace_from(given, None).correlation_id) == 36


def test_a_child_stays_in_its_trace_with_a_span_of_its_own() -> None:
    version, trace_id, span, flags = child_of(PARENT).split("-")

    assert (version, trace_id, flags) == tuple(PARENT.split("-")[i] for i in (0, 1, 3))
    assert span != PARENT.split("-")[2]


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "nonsense",
        PARENT + "\n",
        PARENT.upper(),
        PARENT[:-1],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        "ff" + PARENT[2:],
    ],
)
def test_a_malformed_traceparent_begins_a_new_trace(given: str | None) -> None:
    child = child_of(given)

    assert child_of(child)[:36] == child[:36]  # it is well formed itself
    assert PARENT.split("-")[1] not in child


@given(st.none() | st.text(), st.none() | st.text())
def test_whatever_comes_from_outside_the_trace_is_well_formed(
    correlation_id: str | None, traceparent: str | None
) -> None:
    trace = trace_from(correlation_id, traceparent)

    assert trace.traceparent is not None
    assert trace_from(trace.correlation_id, None).correlation_id == trace.correlation_id
    assert child_of(trace.traceparent)[:36] == trace.traceparent[:36]
