"""Spans of a consumer: fetches, transactions, and attempts to handle a message.

All attempts at a message are children of its creation, and each links to the one before. A
transaction of many messages is a span beside their traces, with links to them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from aiokafka import ConsumerRecord
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    get_current_span,
    set_span_in_context,
)

from app.platform import tracing
from app.platform.kafka.codec import CE_ID, header, trace_of
from app.platform.kafka.delivery import Delivery, Undecodable
from app.platform.kafka.spans import (
    Attributes,
    attributes_of,
    content_attributes,
    links_to,
    links_to_attempt,
    place_attributes,
    sampling_of,
)
from app.platform.logs import ids_of
from app.platform.tracing import Trace


@dataclass
class _Fetch:
    """The tracing of the messages of one fetch. They are known by the identities of their records."""

    context: Context  # of the span of the fetch; empty without one
    traced: Mapping[int, Context]  # of the messages whose attempts have spans, usually few
    topic: str | None  # of all messages, if it is one
    size: int
    places: Sequence[int]  # of the traced messages in the fetch
    attempts: dict[int, SpanContext] = field(default_factory=dict)
    alone: set[int] = field(default_factory=set)  # in a transaction that is the attempt itself

    def may_trace(self, record: ConsumerRecord) -> bool:
        """Return whether an attempt has a span: in a sampled trace, or as the root of a new one."""
        return id(record) in self.traced

    def traced_of(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Return those of `deliveries` whose attempts have spans."""
        if len(deliveries) == self.size:  # all messages, in their order
            return [deliveries[place] for place in self.places]
        # Every message of a lane passes here, so it is one pass without a call for each.
        traced = self.traced
        return [each for each in deliveries if id(each.record) in traced] if traced else []

    def remember(self, record: ConsumerRecord, attempt: Span) -> None:
        if attempt.is_recording():
            self.attempts[id(record)] = attempt.get_span_context()


# Unset while tracing is off. The lanes of a fetch share it.
_fetch: ContextVar[_Fetch | None] = ContextVar("fetch", default=None)


def last_attempt(record: ConsumerRecord) -> str | None:
    """Return the `traceparent` of the last attempt at a message in this process, if it has a span."""
    fetch = _fetch.get()
    attempt = None if fetch is None else fetch.attempts.get(id(record))
    if attempt is None:
        return None
    return tracing.traceparent_of(set_span_in_context(NonRecordingSpan(attempt)))


def ids_of_attempt(record: ConsumerRecord) -> dict[str, str]:
    """Return the ids for log lines about a message: of its last attempt, or else of its sender."""
    fetch = _fetch.get()
    attempt = None if fetch is None else fetch.attempts.get(id(record))
    if attempt is None:
        attempt = get_current_span(tracing.context_of(record.headers)).get_span_context()
    return ids_of(attempt)


class ConsumerSpans:
    """The spans of one consumer."""

    def __init__(self, consumer: str, group: str | None, source_topics: Mapping[str, str]) -> None:
        self._consumer = consumer
        self._origins = source_topics
        self._common: Attributes = {"app.consumer": consumer}
        if group is not None:
            self._common["messaging.consumer.group.name"] = group

    # Fetches and transactions

    @contextmanager
    def fetch(self, records: Sequence[ConsumerRecord], began: int | None) -> Iterator[None]:
        """Trace what becomes of `records`, whose fetch `began` at a time in nanoseconds."""
        if not tracing.is_on():
            yield
            return
        places = [
            place
            for place, record in enumerate(records)
            if sampling_of(record.headers) is not False
        ]
        token = _fetch.set(self._fetched(records, places, began))
        try:
            yield
        finally:
            _fetch.reset(token)

    def _fetched(
        self, records: Sequence[ConsumerRecord], places: Sequence[int], began: int | None
    ) -> _Fetch:
        traced = {
            id(records[place]): tracing.context_of(records[place].headers) for place in places
        }
        topic = _topic_of(records) if traced else None
        context = self._receive(len(records), topic, links_to(traced.values()), began)
        return _Fetch(context, traced, topic, len(records), places)

    def _receive(
        self, messages: int, topic: str | None, links: Sequence[Link], began: int | None
    ) -> Context:
        if not links:
            return Context()
        span = tracing.begin_span(
            f"receive {self._consumer}",
            SpanKind.CLIENT,
            parent=Context(),
            links=links,
            attributes=lambda: self._attributes_of_batch("receive", messages, topic),
            start_time=began,
        )
        if span is None:
            return Context()
        span.end()
        return set_span_in_context(span, Context())

    def transaction(self, deliveries: Sequence[Delivery]) -> AbstractContextManager[object]:
        """Return the span of a transaction: of its only message's attempt, or of the batch."""
        fetch = _fetch.get()
        if fetch is None:
            return nullcontext()
        traced = fetch.traced_of(deliveries)
        if len(deliveries) == 1 and traced:
            return self._attempt_alone(fetch, traced[0])
        links = links_to(fetch.traced[id(each.record)] for each in traced)
        if not links:
            return tracing.unsampled()
        topic = fetch.topic or _topic_of([delivery.record for delivery in deliveries])
        return tracing.span(
            f"process batch {self._consumer}",
            SpanKind.CONSUMER,
            parent=fetch.context,
            links=links,
            attributes=self._attributes_of_batch("process", len(deliveries), topic),
        )

    def _attributes_of_batch(self, operation: str, messages: int, topic: str | None) -> Attributes:
        found = attributes_of(operation, topic)
        return {**found, **self._common, "messaging.batch.message_count": messages}

    # Attempts

    def handling(self, deliveries: Sequence[Delivery]) -> AbstractContextManager[object]:
        """Return the scope of a handler's call, in which events refer to what is handled."""
        fetch = _fetch.get()
        if len(deliveries) > 1:
            return self._handling_batch(fetch, deliveries)
        (only,) = deliveries
        if fetch is not None and fetch.may_trace(only.record):
            alone = id(only.record) in fetch.alone
            return nullcontext() if alone else self._attempt(fetch, only)
        return tracing.bind_trace(_trace_of(only), tracing.context_of(only.record.headers))

    def fail(self, undecodable: Undecodable) -> None:
        """Record the attempt at a message that cannot be decoded."""
        fetch, record = _fetch.get(), undecodable.record
        if fetch is None or not fetch.may_trace(record):
            return
        span = self._begin_attempt(
            fetch,
            record,
            self._links_to_batch(),
            self._attributes(record, header(record.headers, CE_ID)),
            trace_of(record.headers, None),
        )
        if span is not None:
            tracing.fail_span(span, undecodable.error)
            span.end()

    @contextmanager
    def _attempt_alone(self, fetch: _Fetch, delivery: Delivery) -> Iterator[None]:
        fetch.alone.add(id(delivery.record))
        try:
            with self._attempt(fetch, delivery):
                yield
        finally:
            fetch.alone.discard(id(delivery.record))

    @contextmanager
    def _attempt(self, fetch: _Fetch, delivery: Delivery) -> Iterator[None]:
        record = delivery.record
        with (
            tracing.bind_trace(_trace_of(delivery)),
            tracing.span(
                self._name_of_attempt(record),
                SpanKind.CONSUMER,
                parent=fetch.traced[id(record)],
                links=[*self._links_to_batch(), *self._links_to_attempt(fetch, record)],
                attributes=lambda: self._attributes(record, str(delivery.event.event_id)),
            ) as span,
        ):
            fetch.remember(record, span)
            yield

    @contextmanager
    def _handling_batch(
        self, fetch: _Fetch | None, deliveries: Sequence[Delivery]
    ) -> Iterator[None]:
        attempts = [] if fetch is None else self._begin_attempts(fetch, deliveries)
        spans = dict(attempts)
        by_id: dict[UUID, Delivery] = {}

        def find_origin(id: UUID) -> tuple[Trace, Context] | None:
            if not by_id:  # not before a handler asks, because many publish nothing
                by_id.update((delivery.event.event_id, delivery) for delivery in deliveries)
            if (found := by_id.get(id)) is None:
                return None
            context = tracing.context_of(found.record.headers)
            span = spans.get(id)
            return _trace_of(found), context if span is None else set_span_in_context(span, context)

        try:
            with tracing.bind_batch(find_origin):
                yield
        except Exception as error:
            for _, span in attempts:
                tracing.fail_span(span, error)
            raise
        finally:
            for _, span in attempts:
                span.end()

    def _begin_attempts(
        self, fetch: _Fetch, deliveries: Sequence[Delivery]
    ) -> list[tuple[UUID, Span]]:
        """Begin the spans of a batch handler's messages, each with the id of its event.

        Two events from different sources may have one id.
        """
        spans, batch = [], self._links_to_batch()
        for delivery in fetch.traced_of(deliveries):
            event_id, record = delivery.event.event_id, delivery.record
            attributes = self._attributes_in_batch(record, str(event_id))
            trace = Trace(_trace_of(delivery).correlation_id)
            span = self._begin_attempt(fetch, record, batch, attributes, trace)
            if span is not None:
                spans.append((event_id, span))
        return spans

    def _begin_attempt(
        self,
        fetch: _Fetch,
        record: ConsumerRecord,
        batch: Sequence[Link],
        attributes: Attributes,
        trace: Trace,
    ) -> Span | None:
        span = tracing.begin_span(
            self._name_of_attempt(record),
            SpanKind.CONSUMER,
            parent=fetch.traced[id(record)],
            links=[*batch, *self._links_to_attempt(fetch, record)],
            attributes=attributes,
            trace=trace,
        )
        if span is not None:
            fetch.remember(record, span)
        return span

    def _name_of_attempt(self, record: ConsumerRecord) -> str:
        """Name all attempts alike, from whichever of its topics the message comes."""
        return f"process {self._origins[record.topic]}"

    def _links_to_batch(self) -> list[Link]:
        batch = get_current_span()
        return [Link(batch.get_span_context())] if batch.is_recording() else []

    def _links_to_attempt(self, fetch: _Fetch, record: ConsumerRecord) -> list[Link]:
        """Return the link to the attempt before, if there was one."""
        if (before := fetch.attempts.get(id(record))) is not None:
            return [Link(before)]
        if record.topic == self._origins[record.topic]:  # there the header is the sender's
            return []
        return links_to_attempt(record.headers)

    def _attributes(self, record: ConsumerRecord, event_id: str | None) -> Attributes:
        found = {
            **attributes_of("process", record.topic),
            **place_attributes(record),
            **content_attributes(record.key, record.value),
            **self._common,
        }
        return found if event_id is None else {**found, "messaging.message.id": event_id}

    def _attributes_in_batch(self, record: ConsumerRecord, event_id: str) -> Attributes:
        """Return the attributes of an attempt by a batch handler, of which there may be thousands.

        Each attribute costs 3 µs. So it has none that the span of its batch (the group) or that of
        its message's creation (the key) has, nor its own event's id twice.
        """
        return {
            **attributes_of("process", record.topic),
            **place_attributes(record),
            "messaging.message.id": event_id,
            "app.consumer": self._consumer,
        }


def _trace_of(delivery: Delivery) -> Trace:
    return trace_of(delivery.record.headers, delivery.event.event_id)


def _topic_of(records: Sequence[ConsumerRecord]) -> str | None:
    """Return the topic of all `records`, or None if there are several."""
    topics = {record.topic for record in records}
    return topics.pop() if len(topics) == 1 else None
