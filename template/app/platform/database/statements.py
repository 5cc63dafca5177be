"""Spans of SQL statements, in traces that are recorded. Values of parameters are not in them."""

import re
from collections.abc import Callable
from typing import Any

from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue
from sqlalchemy import (
    Engine,
    ExceptionContext,
    ExecutionContext,
    PoolProxiedConnection,
    event,
)

from app.platform.tracing import Attributes, begin_span, fail_span, is_recorded, span

# An INSERT of many rows repeats its placeholders for each of them.
_MAX_CHARACTERS = 2_000

_OPERATION = re.compile(r"\s*(\w+)")
_TABLE = re.compile(r'\b(?:FROM|INTO|UPDATE)\s+"?(\w+)', re.IGNORECASE)
_SPAN = "app_span"

_Execute = Callable[..., None]


def trace_statements(engine: Engine) -> None:
    """Make a span for each statement of `engine` from now on, as a child of the current span.

    A statement without such a span, as those of background work, begins no trace.
    """
    # SQLAlchemy's events around a statement would cost each about 10 µs, in a trace or not.
    dialect: Any = engine.dialect  # of this engine alone
    dialect.do_execute = _traced(engine, dialect.do_execute)
    dialect.do_executemany = _traced(engine, dialect.do_executemany, is_many=True)
    event.listen(engine, "handle_error", _fail)
    _trace_commits(engine)


def _traced(engine: Engine, execute: _Execute, is_many: bool = False) -> _Execute:
    def traced(
        cursor: object, statement: str, parameters: Any, context: ExecutionContext | None = None
    ) -> None:
        if context is None or not is_recorded():
            execute(cursor, statement, parameters, context)
            return
        attributes = _attributes(engine, statement, len(parameters) if is_many else 1)
        name = str(attributes["db.query.summary"])
        vars(context)[_SPAN] = begin_span(name, SpanKind.CLIENT, attributes=attributes)
        execute(cursor, statement, parameters, context)  # the span of a failure ends in _fail
        if (ended := _span_of(context)) is not None:
            ended.end()

    return traced


def _trace_commits(engine: Engine) -> None:
    # SQLAlchemy has an event before a COMMIT, and none after it, where the time is spent.
    commit = engine.dialect.do_commit

    def do_commit(connection: PoolProxiedConnection) -> None:
        if not is_recorded():
            return commit(connection)
        with span(
            "COMMIT", SpanKind.CLIENT, attributes=_target(engine) | {"db.operation.name": "COMMIT"}
        ):
            return commit(connection)

    engine.dialect.do_commit = do_commit  # type: ignore[assignment]  # of this engine alone


def _fail(error: ExceptionContext) -> None:
    if (failed := _span_of(error.execution_context)) is None:
        return
    cause = error.original_exception
    code = getattr(cause, "sqlstate", None) or getattr(cause.__cause__, "sqlstate", None)
    if code is not None:
        failed.set_attribute("db.response.status_code", code)
    fail_span(failed, cause)
    failed.end()


def _span_of(context: ExecutionContext | None) -> Span | None:
    """Return the span of a statement, once."""
    return None if context is None else vars(context).pop(_SPAN, None)


def _attributes(engine: Engine, statement: str, rows: int) -> Attributes:
    operation = found[1].upper() if (found := _OPERATION.match(statement)) else "SQL"
    table = found[1] if (found := _TABLE.search(statement)) else ""
    known = {
        **_target(engine),
        "db.operation.name": operation,
        "db.collection.name": table,
        "db.query.summary": f"{operation} {table}".rstrip(),
        "db.query.text": statement[:_MAX_CHARACTERS],
        "db.operation.batch.size": rows if rows > 1 else None,
    }
    return {name: value for name, value in known.items() if value}


def _target(engine: Engine) -> dict[str, AttributeValue]:
    known = {
        "db.system.name": "postgresql",
        "db.namespace": engine.url.database,
        "server.address": engine.url.host,
        "server.port": engine.url.port,
    }
    return {name: value for name, value in known.items() if value}
