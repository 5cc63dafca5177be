"""Requests about orders, over HTTP: requests a second, and latencies at a fixed rate.

Each variant of the service is a process of its own (role `api`) with a database and topics of its
own; so is the load generator. Relays and workers do not run, but for one side that relays in the same
process. The sides take turns of a few seconds. Without another word, a request is `POST /orders`.

- *base*: events go to Kafka after the commit, and the answer waits for them; *outbox*, *cqrs* and
  *event_sourcing* (both with the outbox): they are rows of the transaction.
- *no publishing*: the same routes of the base and of event_sourcing, with a publisher that does
  nothing.
- *floor*: bare FastAPI with the same validation, the same statements in one transaction, the same
  event and the same answer, written by hand with SQLAlchemy Core (`benchmarks/orders_floor.py`).
- *bare FastAPI*: one route that validates the same body and inserts one row by SQLAlchemy's ORM. It
  has no users, items, idempotency, tracing, versions or problem details.
- *with a key*: requests have an `Idempotency-Key`; the others have none.
- *get* and *list*: one order, and the newest twenty of a user. *outbox* reads the tables that it
  writes, as *base* and *event_sourcing* do; *cqrs* reads its read model.
- *at 100 requests/s*: requests begin when they are due, whatever became of those before them, and
  waiting for that counts. Without it: eight clients, each at once after its last answer.
- *growth*: *outbox* with 10,000, 100,000 and 1,000,000 orders of 100 users in its tables (fewer below
  a scale of one half): requests that place one more, and that list the newest twenty of a user. All
  other processes have 10,000.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import asyncpg
import psutil
from harness import Measured, Running, Side, Stage, run
from lines import most_expensive, sampled
from results import Area, Comparison, Figures

from app import wiring
from app.platform import logs
from app.platform.database.engine import Base, Database, DatabaseSettings
from app.platform.database.unit_of_work import BindPublisher
from app.platform.dev.process import free_port
from app.platform.events.event import BaseEvent, EventRegistry
from app.platform.kafka.admin import provision
from app.platform.kafka.topics import required_topics

RATE = 100
LOAD = Path(__file__).with_name("load.py")

# A folder of renderings, named by their modules (base, outbox, outbox-cqrs, …), as __main__.py makes
# them.
VARIANTS = Path(os.environ.get("BENCHMARK_VARIANTS", ".")).resolve()

# side: rendering, roles, publisher
SIDES = {
    "bare FastAPI": ("base", "", "bare"),
    "no publishing": ("base", "api", "silent"),
    "base": ("base", "api", "own"),
    "outbox": ("outbox", "api", "own"),
    "outbox, relay in the same process": ("outbox", "api,relay", "own"),
    "cqrs": ("outbox-cqrs", "api", "own"),
    "event_sourcing, no publishing": ("outbox-event_sourcing", "api", "silent"),
    "event_sourcing": ("outbox-event_sourcing", "api", "own"),
    "floor of base": ("base", "", "floor"),
    "floor of outbox": ("outbox", "", "floor"),
    "floor of cqrs": ("outbox-cqrs", "", "floor"),
    "floor of event_sourcing": ("outbox-event_sourcing", "", "floor"),
}
PLACING = ["base", "outbox", "cqrs", "event_sourcing"]
READING = ["outbox", "cqrs"]

GROWING = "outbox"
ORDERS = 10_000
USERS = 100
FILL = [
    """
    INSERT INTO orders (id, user_id, status, total, version)
    SELECT nextval('order_ids'), 1 + n % (SELECT count(*) FROM users), 'placed', 19.00, 1
    FROM generate_series(1, {orders}) AS n
    """,
    """
    INSERT INTO order_items (order_id, position, sku, quantity, unit_price)
    SELECT id, 0, 'sku-0', 2, 9.50 FROM orders
    """,
    "VACUUM ANALYZE orders, order_items",
    "CHECKPOINT",
]
FILL_VIEWS = [
    "INSERT INTO customer_names SELECT id, username FROM users",
    """
    INSERT INTO order_views
        (order_id, user_id, status, items, item_count, total, version, placed_at, updated_at)
    SELECT id, user_id, status, '[{{"sku": "sku-0", "quantity": 2, "unit_price": "9.50"}}]', 2,
        total, version, created_at, updated_at
    FROM orders
    """,
    "VACUUM ANALYZE order_views, customer_names",
]


class Silent:
    """A publisher that drops every event."""

    async def publish(self, event: BaseEvent) -> None: ...

    async def has_committed(self, error: BaseException) -> bool:
        return False

    async def after_commit(self) -> None: ...


def serve(port: int, rendering: str, roles: str, publisher: str) -> None:
    from app.platform.config import HttpSettings, load
    from app.platform.http.app import create_app
    from app.platform.http.server import listen, run
    from app.platform.service import Component, Role, Service

    def bind_silent(*_resources: object) -> BindPublisher:
        return lambda _session: Silent()

    logs.configure("WARNING", "json")
    limits = load(HttpSettings)
    if publisher == "bare":
        run(bare(), listen("127.0.0.1", port), limits)
        return
    if publisher == "floor":
        from orders_floor import floor

        run(floor(rendering), listen("127.0.0.1", port), limits)
        return
    service = wiring.service
    if publisher == "silent":
        silent = replace(service.publishing, bind=bind_silent)
        parts = [replace(part, publishing=None) for part in service.components]
        service = Service([*parts, Component("silent", publishing=silent)])
    app = create_app(service, {Role(role) for role in roles.split(",")})
    run(app, listen("127.0.0.1", port), limits)


def bare() -> object:
    """Build the plain application: a model, a session a request, a commit."""
    from fastapi import FastAPI
    from sqlalchemy import JSON, Numeric
    from sqlalchemy.orm import Mapped, mapped_column

    from app.orders.router import OrderCreate

    class BareOrder(Base):
        __tablename__ = "bare_orders"

        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int]
        items: Mapped[list[object]] = mapped_column(JSON)
        total: Mapped[object] = mapped_column(Numeric(20, 2))

    database = Database(DatabaseSettings(_env_file=None))
    app = FastAPI()

    @app.post("/orders", status_code=201)
    async def place(order: OrderCreate) -> dict[str, object]:
        items = [item.model_dump(mode="json") for item in order.items]
        total = sum(item.quantity * item.unit_price for item in order.items)
        async with database.sessions() as session, session.begin():
            row = BareOrder(user_id=order.user_id, items=items, total=total)
            session.add(row)
        return {"id": row.id, "user_id": row.user_id, "items": items, "total": str(total)}

    return app


BARE_TABLE = (
    "CREATE TABLE bare_orders (id serial PRIMARY KEY, user_id int, items json, total numeric)"
)
SIGN_UP = f"""
    INSERT INTO users (id, email, username)
    SELECT n, n || '@example.com', 'user-' || n FROM generate_series(1, {USERS}) AS n
"""


async def own_servers(stage: Stage, rendering: str, **environment: str) -> dict[str, str]:
    """Create a database with the tables of a rendering; return the environment of its processes.

    It has a name of its own for topics and consumer groups, which do not exist yet.
    """
    name = f"bench_{secrets.token_hex(4)}"
    await stage.connection.execute(f"CREATE DATABASE {name}")
    server = stage.database.engine.url.set(drivername="postgresql")
    folder = VARIANTS / rendering
    assert (folder / "app").is_dir(), f"no rendering in {folder}: see BENCHMARK_VARIANTS"
    environment = {
        **os.environ,
        **environment,
        "SERVICE_NAME": name,
        "KAFKA_GROUP_ID": name,
        "DATABASE_URL": server.set(database=name).render_as_string(hide_password=False),
        "KAFKA_BOOTSTRAP_SERVERS": stage.servers.kafka_bootstrap_servers,
        "PYTHONPATH": str(folder),  # before the rendering that is installed here
    }
    await run_command(rendering, environment, "db", "upgrade")  # the rendering's own migrations
    return environment


async def run_command(rendering: str, environment: dict[str, str], *command: str) -> None:
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "app", *command],
        cwd=VARIANTS / rendering,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )


@asynccontextmanager
async def process(
    stage: Stage,
    rendering: str,
    command: Sequence[str],
    orders: int = 0,
    **environment: str,
) -> AsyncIterator[Running]:
    """A process of the service, with a database and topics of its own. In the database
    are users, and so many orders of theirs."""
    environment = await own_servers(stage, rendering, **environment)
    settings = stage.settings(environment["SERVICE_NAME"])
    registry = EventRegistry(environment["SERVICE_NAME"], wiring.service.events)
    await provision(settings, required_topics(settings, registry, []))
    await fill(environment["DATABASE_URL"], orders, views="cqrs" in rendering)
    port = free_port()
    running = Running(
        psutil.Popen([*command, "--port", str(port)], cwd=VARIANTS / rendering, env=environment),
        port,
    )
    try:
        while not await answers(port):
            assert running.process.poll() is None, f"{command} in {rendering} has ended"
            await asyncio.sleep(0.05)
        yield running
    finally:
        running.process.terminate()
        running.process.wait()


def serving(side: str) -> tuple[str, list[str]]:
    """Return the rendering of `side`, and the command that serves it."""
    rendering, roles, publisher = SIDES[side]
    return rendering, [sys.executable, __file__, "--serve", rendering, roles, publisher]


async def fill(url: str, orders: int, views: bool) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(BARE_TABLE)
        await connection.execute(SIGN_UP)
        for statement in [*FILL, *(FILL_VIEWS if views else [])]:
            await connection.execute(statement.format(orders=orders))
    finally:
        await connection.close()


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def generated(
    port: int, seconds: float, rate: int = 0, operation: str = "post"
) -> dict[str, float]:
    """Run the load generator as a process; return its measurements."""
    command = [sys.executable, str(LOAD), str(port), str(seconds), str(rate), operation]
    running = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await running.communicate()
    assert running.returncode == 0, "the load generator failed"
    measured: dict[str, float] = json.loads(output)
    return measured


async def throughput(process: Running, seconds: float, operation: str) -> Figures:
    """Measure the requests a second, and the processor time of one in the process that serves."""
    before = sum(process.process.cpu_times()[:2])
    measured = await generated(process.port, seconds, operation=operation)
    spent = sum(process.process.cpu_times()[:2]) - before
    return Figures(measured["rate"], spent / measured["requests"] * 1e6)


async def expensive_lines(
    stage: Stage, orders: int, seconds: float
) -> list[tuple[str, float, float]]:
    """Sample a process of the side `outbox` under load; return its most expensive lines."""
    into = Path(f"/tmp/lines-{secrets.token_hex(4)}.json")
    rendering, command = serving("outbox")
    async with process(stage, rendering, [*command, "--lines", str(into)], orders) as running:
        await generated(running.port, 1)
        running.process.send_signal(signal.SIGUSR1)
        figures = await throughput(running, seconds, "post")
    try:
        return most_expensive(json.loads(into.read_text()), figures.cpu_us)
    finally:
        into.unlink()


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    seconds = 2 * scale
    fewest = int(ORDERS * min(1, 2 * scale))
    async with AsyncExitStack() as stack:

        async def started(side: str, orders: int = fewest) -> Running:
            found = await stack.enter_async_context(process(stage, *serving(side), orders))
            await generated(found.port, 0.5)
            return found

        def closed(
            name: str, process: Running, operation: str = "post", rounds: int = 1_000
        ) -> Side:
            measure: Callable[[], Awaitable[Measured]] = lambda: throughput(  # noqa: E731
                process, seconds, operation
            )
            return Side(name, "requests/s", measure, rounds)

        def open_(side: str, process: Running) -> Side:
            name = f"{side}, at {RATE} requests/s"
            return Side(name, "ms", lambda: generated(process.port, max(1.5, seconds), RATE), 3)

        processes = {side: await started(side) for side in SIDES}
        growing = {times: await started(GROWING, fewest * times) for times in (1, 10, 100)}
        yield [
            *(closed(side, processes[side]) for side in SIDES if side != "floor of cqrs"),
            *(
                closed(f"{side}, with a key", processes[side], "post_key")
                for side in ("outbox", "floor of outbox")
            ),
            *(
                closed(f"{side}, {operation}", processes[side], operation)
                for operation in ("get", "list")
                for name in READING
                for side in (name, f"floor of {name}")
            ),
            *(open_(side, processes[side]) for side in SIDES if "floor" not in side),
            *(
                closed(f"{operation}, growth x{times}", growing[times], operation, 6)
                for operation in ("post", "list")
                for times in growing
            ),
        ]
    AREA.lines = await expensive_lines(stage, fewest, 5 * seconds)


COMPARISONS = [
    *(
        Comparison(
            f"{side}, beside its floor",
            side,
            "floor of outbox" if side == "cqrs" else f"floor of {side}",
            ">= 0.8",
        )
        for side in PLACING
    ),
    Comparison(
        "outbox with a key, beside its floor",
        "outbox, with a key",
        "floor of outbox, with a key",
        ">= 0.8",
    ),
    *(
        Comparison(
            f"{operation} of {side}, beside its floor",
            f"{side}, {operation}",
            f"floor of {side}, {operation}",
            ">= 0.8",
        )
        for operation in ("get", "list")
        for side in READING
    ),
    Comparison("outbox, beside no publishing", "outbox", "no publishing", ">= 0.85"),
    *(
        Comparison(f"{side}, beside no publishing", side, "no publishing")
        for side in ("base", "cqrs", "outbox, relay in the same process")
    ),
    Comparison(
        "event_sourcing, beside its own without publishing",
        "event_sourcing",
        "event_sourcing, no publishing",
        ">= 0.85",
    ),
    *(
        Comparison(
            f"{side}, beside bare FastAPI",
            side,
            "bare FastAPI",
            ">= 0.55",
        )
        for side in ("no publishing", *PLACING)
    ),
    *(
        Comparison(
            f"{step} at {RATE} requests/s, {side}, beside no publishing",
            f"{side}, at {RATE} requests/s, {step}",
            f"no publishing, at {RATE} requests/s, {step}",
        )
        for step in ("p50", "p99")
        for side in PLACING
    ),
    *(
        Comparison(
            f"{operation}: {times} times the orders",
            f"{operation}, growth x{times}",
            f"{operation}, growth x1",
            growth=True,
        )
        for operation in ("post", "list")
        for times in (10, 100)
    ),
]
AREA = Area("orders", "Requests about orders", __doc__ or "", COMPARISONS)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--serve", nargs=3, metavar=("RENDERING", "ROLES", "PUBLISHER"))
    parser.add_argument("--port", type=int)
    parser.add_argument("--lines", type=Path)
    arguments, _ = parser.parse_known_args()
    if arguments.serve:
        with sampled(arguments.lines, Path.cwd()) if arguments.lines else nullcontext():
            serve(arguments.port, *arguments.serve)
    else:
        run(AREA, plan, turns=3)
