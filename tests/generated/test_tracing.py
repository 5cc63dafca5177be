"""A request is one trace through two services, as an OTLP receiver sees it.

The processes of `shop` (API, worker, relay of an outbox) stand apart; `billing` is one process, which
consumes `order.created`. It issues no invoice to the first user before a heartbeat opens his account.
"""

import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import demo, otlp
from tests.generated.conftest import Service
from tests.generated.processes import kill, log_of, running
from tests.generated.workspace import Workspace
from tests.matrix import Variant
from tests.otlp import Receiver, Span

SECONDS = 60
SHOP = Variant(("outbox",), others={"service_name": "shop"})
BILLING = Variant(sample_domain=False, others={"service_name": "billing"})
ORDERED, INVOICED = "shop.order.created", "billing.invoice.issued"
DELAYED, DEAD = f"{ORDERED}.invoices.retry.1s", f"{ORDERED}.invoices.dlq"
CLOSED_ACCOUNT, OPEN_ACCOUNT = 1, 2
SAMPLED, UNSAMPLED = "01", "00"
TRACESTATE = "vendor=value"

EMPTY = (
    '    """Write with `uow.session` and publish with `uow.events`; the unit of work commits."""\n'
)
ISSUE = f"""\
    opened = await HeartbeatCountRepository(uow.session).get("account")
    if event.user_id == {CLOSED_ACCOUNT} and not opened:
        raise RuntimeError("the account is closed")
    await uow.events.publish(InvoiceIssued(invoice_id=event.order_id))
"""
MAIL = """\
    await HeartbeatCountRepository(uow.session).add({f"invoice-{event.invoice_id}": 1})
"""
SUBSCRIBED = 'Subscription("invoices", {OrderCreated: handle_invoices}'
POLICY = "retry=RetryPolicy(attempts=2, initial=0.1, retry_after=[timedelta(seconds=1)])"
IMPORTED = "from app.platform.kafka.subscription import "
IMPORTS = "from datetime import timedelta\n"

pytestmark = pytest.mark.xdist_group("tracing")


@dataclass(frozen=True)
class Order:
    """An order, with the trace and the span of the client that placed it."""

    number: int
    trace_id: str
    span_id: str


@dataclass
class Services:
    """Both services, at work, and the receiver of their spans."""

    shop: Service
    billing: Service
    receiver: Receiver
    stack: ExitStack
    relay: "subprocess.Popen[bytes]"
    orders: str
    heartbeats: str

    def place(self, user: int = OPEN_ACCOUNT, flags: str = SAMPLED) -> Order:
        """Place an order as a client that has begun a trace."""
        trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
        headers = {"traceparent": f"00-{trace_id}-{span_id}-{flags}", "tracestate": TRACESTATE}
        item = {"sku": "tea-250g", "quantity": 1, "unit_price": "3.50"}
        status, created = demo.call(self.orders, {"user_id": user, "items": [item]}, headers)
        assert status == 201, created
        return Order(created["id"], trace_id, span_id)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        demo.wait_until(lambda: bool(condition()), SECONDS, what, self.billing.path)

    def counted(self, source: str) -> int:
        return int(demo.call(f"{self.heartbeats}/{source}")[1]["heartbeats"])

    def wait_for_mail(self, order: Order) -> None:
        """Wait for the effect of the last handler."""
        source = f"invoice-{order.number}"
        self.wait_for(lambda: self.counted(source), f"no mail about order {order.number}")

    def whole_trace(self, order: Order) -> list[Span]:
        """Return the spans of an order, once those of all last handlers have arrived."""
        self.wait_for_mail(order)

        def succeeded() -> set[tuple[str, str]]:
            found = self.receiver.trace(order.trace_id)
            return {(span.service, span.name) for span in found if not span.failed}

        last = {("billing", f"process {topic}") for topic in (ORDERED, INVOICED)}
        last |= {("shop", f"{operation} {ORDERED}") for operation in ("send", "process")}
        self.wait_for(lambda: succeeded() >= last, "no span of the last handlers")
        self.wait_for(
            lambda: not otlp.missing_parents(self.receiver.trace(order.trace_id), order.span_id),
            "parents are missing",
        )
        return self.receiver.trace(order.trace_id)

    def replace_relay(self) -> None:
        kill(self.relay)
        self.relay = self.stack.enter_context(relay_of(self.shop, self.receiver))


def relay_of(
    shop: Service, receiver: Receiver
) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    port = ("--port", str(demo.free_port()))
    return running(shop, "relay", *port, settings=receiver.settings())


@pytest.fixture(scope="module")
def shop(workspace: Workspace, repository: Path, services_folder: Path) -> Service:
    path = workspace.render(SHOP, repository, "traced-shop")
    settings = workspace.shared_environment(path)
    return Service(path, "shop", settings, services_folder / "summary")


@pytest.fixture(scope="module")
def billing(workspace: Workspace, repository: Path, services_folder: Path) -> Service:
    """A service that issues an invoice for each order of `shop`, and mails it."""
    path = workspace.render(BILLING, repository, "traced-billing")
    settings = workspace.shared_environment(path)
    service = Service(path, "billing", settings, services_folder / "summary")
    own = ("--slice", "heartbeats")
    foreign = ("--service", "shop", "--field", "user_id:int")
    service.run("app", "new", "event", "order.created", *foreign, *own)
    service.run("app", "new", "event", "invoice.issued", *own)
    service.run("app", "new", "consumer", "invoices", "order.created")
    service.run("app", "new", "consumer", "mails", "invoice.issued")
    handlers = path / "app" / "heartbeats" / "handlers.py"
    written = handlers.read_text()
    assert (written.count(EMPTY), written.count(SUBSCRIBED), written.count(IMPORTED)) == (2, 1, 1)
    written = written.replace(EMPTY, ISSUE, 1).replace(EMPTY, MAIL)
    written = written.replace(SUBSCRIBED, f"{SUBSCRIBED}, {POLICY}")
    handlers.write_text(IMPORTS + written.replace(IMPORTED, f"{IMPORTED}RetryPolicy, "))
    return service


@pytest.fixture(scope="module")
def services(shop: Service, billing: Service) -> Iterator[Services]:
    with ExitStack() as stack:
        receiver = stack.enter_context(otlp.receiving())
        stack.enter_context(running(shop, "dev", "--servers-only", "--fresh"))
        demo.wait_until(
            lambda: "Nothing serves or consumes yet" in log_of(shop, "dev"),
            demo.START_SECONDS,
            "no servers",
            shop.path,
        )
        relay = stack.enter_context(relay_of(shop, receiver))
        port = ("--port", str(demo.free_port()))
        stack.enter_context(running(shop, "worker", *port, settings=receiver.settings()))
        port = ("--port", str(demo.free_port()))
        api = stack.enter_context(running(shop, "api", *port, settings=receiver.settings()))
        sharing = ("--fresh", "--kafka-of", str(shop.path))
        settings = {**billing.settings, **receiver.settings()}
        heartbeats, _ = stack.enter_context(
            demo.running_service(billing.path, *sharing, settings=settings)
        )
        address = f"http://127.0.0.1:{port[1]}"
        demo.wait_until(lambda: demo.is_ready(address, api), SECONDS, "no API", shop.path)
        for number in (CLOSED_ACCOUNT, OPEN_ACCOUNT):
            user = {"email": f"user-{number}@example.com", "username": f"user-{number}"}
            assert demo.call(f"{address}/users", user)[1]["id"] == number
        yield Services(
            shop, billing, receiver, stack, relay, f"{address}/orders", f"{heartbeats}/heartbeats"
        )
    assert receiver.refused == []


def test_a_failed_message_stays_in_the_trace_of_its_request(services: Services) -> None:
    """Retries in place, a delay topic, the dead letter and its replay, to the last handler."""
    order = services.place(CLOSED_ACCOUNT)

    def dead() -> list[Span]:
        found = services.receiver.trace(order.trace_id)
        return [span for span in found if span.name == f"send {DEAD}"]

    services.wait_for(dead, "no dead letter")
    assert demo.call(services.heartbeats, {"source": "account"})[0] == 201
    services.wait_for(lambda: services.counted("account"), "the account is not open")
    services.billing.run(
        *("app", "dlq", "replay", "--consumer", "invoices", "--wait"),
        # It ends before it would send its spans by itself.
        settings={**services.receiver.settings(), "OTEL_BSP_SCHEDULE_DELAY": "60000"},
    )
    trace = services.whole_trace(order)
    check_is_one_trace(trace, order)
    by_id = {span.span_id: span for span in trace}

    (last,) = named(trace, f"process {INVOICED}")
    assert last.tracestate == TRACESTATE
    assert by_id[last.parent_id].name == f"create {INVOICED}"
    success = by_id[by_id[last.parent_id].parent_id]
    (created,) = named(trace, f"create {ORDERED}")
    attempts = [span for span in trace if span.kind == "CONSUMER" and span.service == "billing"]
    attempts.remove(last)
    assert success in attempts
    assert {span.parent_id for span in attempts} == {created.span_id}
    assert [span for span in attempts if not span.failed] == [success]

    # Each attempt links to the one before: the replay, the delay topic, two in place, the batch's.
    history = [success]
    while before := [by_id[link] for _, link in history[-1].links if link in by_id]:
        history += before
    assert [span.name for span in history[1:2]] == [f"replay {DEAD}"]
    assert len(history) == len(attempts) + 1
    assert {span.span_id for span in attempts} < {span.span_id for span in history}
    sent = [span for topic in (DELAYED, DEAD) for span in named(trace, f"send {topic}")]
    assert [by_id[span.parent_id] in attempts for span in sent] == [True, True]


def test_an_event_stays_in_its_trace_when_the_relay_dies(services: Services) -> None:
    """The relay is stopped before the commit, and killed after it."""
    first = services.whole_trace(services.place())
    os.killpg(services.relay.pid, signal.SIGSTOP)
    order = services.place()
    services.replace_relay()
    trace = services.whole_trace(order)
    check_is_one_trace(trace, order)
    (sent,) = named(trace, f"send {ORDERED}")
    (sent_before,) = named(first, f"send {ORDERED}")
    assert sent.process != sent_before.process
    (created,) = named(trace, f"create {ORDERED}")
    assert sent.parent_id == created.span_id
    # Each process is told apart, and named as the service is.
    processes = {(span.service, span.process) for span in trace}
    assert sorted(service for service, _ in processes) == ["billing", "shop", "shop", "shop"]


def test_an_unsampled_request_leaves_no_span(services: Services) -> None:
    services.whole_trace(services.place())
    unsampled = services.place(flags=UNSAMPLED)
    services.wait_for_mail(unsampled)
    # Processes send their spans in order, so when those of a later order are here, all are.
    sampled = services.whole_trace(services.place())
    of_others = {span.trace_id for span in services.receiver.spans}
    assert unsampled.trace_id not in of_others
    assert {span.service for span in sampled} == {"shop", "billing"}


def test_every_span_has_a_reason(services: Services) -> None:
    """Traces begin with a request, or with work that links to one: never with a statement."""
    services.whole_trace(services.place())
    spans = services.receiver.spans
    known = {span.trace_id for span in spans if span.kind == "SERVER"}
    unlinked = [
        span.name
        for span in spans
        if not span.parent_id
        and span.kind != "SERVER"
        and not known & {trace_id for trace_id, _ in span.links}
    ]
    assert unlinked == []


def check_is_one_trace(trace: list[Span], order: Order) -> None:
    """It begins with the request, every parent is there, and `tracestate` is everywhere."""
    assert otlp.missing_parents(trace, order.span_id) == []
    (first,) = (span for span in trace if span.parent_id == order.span_id)
    assert (first.service, first.kind, first.name) == ("shop", "SERVER", "POST /orders")
    assert {span.service for span in trace} == {"shop", "billing"}
    assert {span.tracestate for span in trace} == {TRACESTATE}
    names = {span.name for span in trace}
    assert {f"create {ORDERED}", f"send {ORDERED}", f"process {ORDERED}"} <= names


def named(trace: list[Span], name: str) -> list[Span]:
    return [span for span in trace if span.name == name]
