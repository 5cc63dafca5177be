"""The database's server has limits, stricter defaults, and a fail-over."""

import asyncio
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url

from app.platform.database.migrations import upgrade
from app.platform.dev.postgres import PostgresServer
from app.platform.dev.process import clean_environment
from drills.bench import Bench, eventually
from drills.conftest import MakeBench
from drills.service import Process

READ_ONLY = "urn:problem-type:database-read-only"
LIMIT = "urn:problem-type:database-limit"


async def test_limits_of_the_server_cost_no_message(bench_of: MakeBench) -> None:
    """Locks and statements time out, the disk is full, and the database is read-only for a while.

    Requests get 503 and when to come again; the worker waits and says why; nothing is counted.
    """
    bench = await bench_of("every-way", topics=False)
    bench.app("topics", "create")
    await configure(bench, "SET lock_timeout = '300ms'", "SET statement_timeout = '1500ms'")
    api, worker = bench.api(), bench.worker()
    await asyncio.gather(api.is_ready(), worker.is_ready())
    async with bench.feeding(rate=100), httpx.AsyncClient(base_url=api.url, timeout=20) as http:
        async with locked(bench, "effects, users"):
            await says(worker, "lock timeout")
            await refused(http, LIMIT)
        await works_again(bench, http)
        for code, reason in [("57014", "refused"), ("53100", "refused")]:
            async with refusing(bench, code):
                await says(worker, reason)
                await refused(http, LIMIT)
            await works_again(bench, http)
        await configure(bench, "SET default_transaction_read_only = on")
        await cut(bench)
        await says(worker, "default_transaction_read_only")
        await says(api, "default_transaction_read_only")
        await refused(http, READ_ONLY)
        await configure(bench, "RESET default_transaction_read_only")
        await works_again(bench, http)
    await bench.settled()
    await bench.check()
    await nothing_failed(bench, worker)


async def test_stricter_isolation_and_conflicts_fail_nothing(bench_of: MakeBench) -> None:
    """The database is set to `repeatable read`, and every second transaction is refused with a
    serialization failure once."""
    bench = await bench_of("every-way", topics=False)
    bench.app("topics", "create")
    await configure(bench, "SET default_transaction_isolation = 'repeatable read'")
    api, worker = bench.api(), bench.worker()
    await asyncio.gather(api.is_ready(), worker.is_ready())
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        assert await pay(http, orders=20, times=8) == Counter({200: 20, 409: 140})
        assert api.logged("request retried") == []
        await configure(bench, "RESET default_transaction_isolation")
        async with refusing(bench, "40001", every=2):
            answers = [await sign_up(http) for _ in range(20)]
            await bench.feed(300)
            await bench.settled()
    assert [answer.status_code for answer in answers] == [201] * 20
    assert api.logged("request retried") != []
    await bench.check()
    await nothing_failed(bench, worker)


async def test_an_empty_pool_is_no_outage(bench_of: MakeBench) -> None:
    """The only connection of the pool waits for a lock: others are told so, and readiness stays."""
    bench = await bench_of(
        "single", topics=False, DATABASE_POOL_SIZE="1", DATABASE_MAX_OVERFLOW="0"
    )
    bench.app("topics", "create")
    api = bench.api(DATABASE_POOL_TIMEOUT_SECONDS="1")
    await api.is_ready()
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        async with locked(bench, "users"):
            asked = [asyncio.create_task(sign_up(http)) for _ in range(4)]
            await eventually(lambda: api.metric("database_pool_timeouts_total"), lambda n: n >= 3)
            assert (await api.readiness())[0] == 200
        answers = await asyncio.gather(*asked)
    assert Counter(answer.status_code for answer in answers) == Counter({503: 3, 201: 1})
    kinds = {a.json()["type"] for a in answers if a.status_code == 503}
    assert kinds == {"urn:problem-type:connection-pool-empty"}


async def test_a_fail_over_is_followed_when_the_name_moves(
    bench_of: MakeBench, pair: "Pair"
) -> None:
    """The standby is promoted, and the old primary comes back as its standby, before the name moves.

    Until then nothing can be written, and readiness says so. After that all is well within seconds,
    though no connection was cut.
    """
    bench = await bench_of("single", topics=False)
    bench.app("topics", "create")
    async with named(pair.primary) as name:
        bench.database_url = name.url
        await bench.create_tables()
        api, worker = bench.api(DATABASE_URL=name.url), bench.worker(DATABASE_URL=name.url)
        await asyncio.gather(api.is_ready(), worker.is_ready())
        await bench.feed(50)
        await bench.settled()
        await asyncio.to_thread(pair.switch)
        async with httpx.AsyncClient(base_url=api.url, timeout=20) as http:
            await bench.feed(50)
            await says(api, "a standby, which takes no writes")
            await refused(http, READ_ONLY)
            assert await read(http) == [404] * 8
            name.leads_to(pair.standby)
            answer = await eventually(
                lambda: sign_up(http), lambda a: a.status_code == 201, seconds=20
            )
            assert answer.status_code == 201
        await bench.settled(seconds=30)
        await asyncio.gather(api.is_ready(), worker.is_ready())
        await bench.check()
        await nothing_failed(bench, worker)


# The server


async def configure(bench: Bench, *settings: str) -> None:
    """Set what new connections to the database begin with."""
    connection = await asyncpg.connect(bench.database_url)
    await connection.execute("SET default_transaction_read_only = off")
    (name,) = await connection.fetchrow("SELECT quote_ident(current_database())")
    for setting in settings:
        await connection.execute(f"ALTER DATABASE {name} {setting}")
    await connection.close()


@asynccontextmanager
async def locked(bench: Bench, tables: str) -> AsyncIterator[None]:
    """Hold `tables`, as somebody's migration does."""
    connection = await asyncpg.connect(bench.database_url)
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = 0")
            await connection.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def refusing(bench: Bench, code: str, every: int = 1) -> AsyncIterator[None]:
    """Refuse every insert of a user or an effect, or every second, …, with the SQLSTATE `code`."""
    await bench.query("CREATE SEQUENCE IF NOT EXISTS refusals")
    await bench.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF nextval('refusals') % {every} = 0 THEN"
        f" RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END IF; RETURN NULL; END $$"
    )
    for table in ("users", "effects"):
        await bench.query(
            f"CREATE TRIGGER refuse AFTER INSERT ON {table} EXECUTE FUNCTION refuse()"
        )
    try:
        yield
    finally:
        await eventually(lambda: dropped(bench, "FUNCTION refuse CASCADE"))


async def dropped(bench: Bench, thing: str) -> bool:
    try:
        await bench.query(f"DROP {thing}")
    except asyncpg.LockNotAvailableError:  # the limit that the drill has set
        return False
    return True


async def cut(bench: Bench) -> None:
    """Let every process connect anew."""
    await bench.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


# The processes


async def says(process: Process, reason: str) -> None:
    """Wait until the process is not ready for that reason."""
    await eventually(process.readiness, lambda said: said[0] == 503 and reason in str(said[1]))


async def works_again(bench: Bench, http: httpx.AsyncClient) -> None:
    before = await bench.applied()
    await eventually(lambda: sign_up(http), lambda answer: answer.status_code == 201)
    await eventually(bench.applied, lambda now: now > before + 100)


async def nothing_failed(bench: Bench, worker: Process) -> None:
    for consumer in bench.consumers:
        failed = await worker.metric("kafka_messages_failed_total", consumer=consumer)
        assert failed == 0, f"{consumer}: {failed:g} failures were counted"


async def sign_up(http: httpx.AsyncClient) -> httpx.Response:
    name = os.urandom(6).hex()
    return await http.post("/users", json={"email": f"{name}@example.com", "username": name})


async def refused(http: httpx.AsyncClient, kind: str) -> None:
    answer = await eventually(lambda: sign_up(http), lambda a: a.status_code != 201)
    assert (answer.status_code, answer.json()["type"]) == (503, kind), answer.text
    assert answer.headers["Retry-After"].isdecimal()


async def read(http: httpx.AsyncClient) -> list[int]:
    """Side by side, so that the pool has as many connections."""
    answers = await asyncio.gather(*(http.get("/users/1000000") for _ in range(8)))
    return [answer.status_code for answer in answers]


async def pay(http: httpx.AsyncClient, orders: int, times: int) -> Counter[int]:
    """Pay each of the orders several times at once; how often there was which answer."""
    user = (await sign_up(http)).json()["id"]
    item = {"sku": "pen", "quantity": 1, "unit_price": "1.00"}
    order = {"user_id": user, "items": [item]}
    ids = [(await http.post("/orders", json=order)).json()["id"] for _ in range(orders)]
    answers = await asyncio.gather(
        *(
            http.post(f"/orders/{id}/pay", headers={"If-Match": "*"})
            for id in ids
            for _ in range(times)
        )
    )
    return Counter(answer.status_code for answer in answers)


# The fail-over


class Pair:
    """A primary and its standby, with the tables of the service."""

    def __init__(self, folder: Path) -> None:
        self.primary = PostgresServer(folder / "primary", fsync=False, fresh=True)
        self.standby = PostgresServer(folder / "standby", fsync=False)

    def start(self) -> None:
        self.primary.start()
        asyncio.run(upgrade(self.primary.url))
        self._copy(self.primary, self.standby)
        self.standby.start()

    def switch(self) -> None:
        """Promote the standby; the old primary follows it."""
        self.primary.stop()  # which sends all that it has to the standby
        run(self.standby, "psql", "--command", "SELECT pg_promote()")
        follow(self.primary, self.standby)
        self.primary.start()

    def _copy(self, source: PostgresServer, copy: PostgresServer) -> None:
        shutil.rmtree(copy.data, ignore_errors=True)
        cluster = copy.data / "cluster"
        run(source, "pg_basebackup", "--pgdata", str(cluster), "--checkpoint", "fast")
        own(cluster, source)
        shutil.copy(source.data / "password", copy.data)
        follow(copy, source)

    def kill(self) -> None:
        self.primary.kill()
        self.standby.kill()


def run(server: PostgresServer, program: str, *arguments: str) -> None:
    command = [str(server._programs.folder / program), "--dbname", server.url, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(), check=False
    )
    assert done.returncode == 0, done.stderr


def follow(standby: PostgresServer, primary: PostgresServer) -> None:
    """Make a server that is stopped a standby of `primary`."""
    cluster = standby.data / "cluster"
    (cluster / "standby.signal").touch()
    with (cluster / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"primary_conninfo = '{primary.url}'\n")
    own(cluster, primary)


def own(cluster: Path, like: PostgresServer) -> None:
    """Give files to the user that PostgreSQL runs as, where this is root."""
    if os.geteuid() == 0:
        owner = (like.data / "cluster").stat()
        for path in [cluster, *cluster.rglob("*")]:
            os.chown(path, owner.st_uid, owner.st_gid)


@pytest.fixture
def pair(drills_folder: Path) -> Iterator[Pair]:
    pair = Pair(drills_folder / "pair")
    try:
        pair.start()
        yield pair
    finally:
        pair.kill()


class Name:
    """A name that leads to a server, as one in DNS does: connections that are open stay."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._carried: set[asyncio.Task[None]] = set()

    def leads_to(self, server: PostgresServer) -> None:
        self._server = server

    async def open(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._listener.sockets[0].getsockname()
        through = make_url(self._server.url).set(host=host, port=port)
        self.url = through.render_as_string(hide_password=False)

    def close(self) -> None:
        self._listener.close()
        for task in self._carried:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server = await asyncio.open_connection("127.0.0.1", self._server.port)
        except OSError:
            writer.close()
            return
        for source, sink in [(reader, server[1]), (server[0], writer)]:
            task = asyncio.create_task(carry(source, sink))
            self._carried.add(task)
            task.add_done_callback(self._carried.discard)


async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass  # the other way round ends, too
    finally:
        sink.close()


@asynccontextmanager
async def named(server: PostgresServer) -> AsyncIterator[Name]:
    name = Name(server)
    await name.open()
    try:
        yield name
    finally:
        name.close()
