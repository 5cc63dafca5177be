"""The embedded servers are their owner's: other users of the machine neither connect nor read."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from app.platform.dev import postgres_programs
from app.platform.dev.errors import DevelopmentServerError, ServerFailed
from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.postgres import PostgresServer
from app.platform.dev.process import run_as
from app.platform.dev.servers import Servers, publish_addresses


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/tmp" if os.name == "posix" else None) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()


@pytest.fixture
def data(place: Path) -> Path:
    return place / "postgres"


@pytest.fixture
def server(data: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(data, fsync=False)
    yield server
    server.kill()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def readable_by_others(folder: Path) -> str:
    """The files below `folder` that another user can read."""
    if os.geteuid() != 0:  # nobody else to try it as
        return "" if mode(folder) == 0o700 else f"all of {folder}"
    command = ["find", str(folder), "-type", "f", "-readable"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", **run_as("nobody"))
    assert done.stderr == "" or "Permission denied" in done.stderr
    found: str = done.stdout
    return found


async def connect(url: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    await connection.close()


@pytest.mark.parametrize("user", ["postgres", "postgres:", "postgres:postgres"])
async def test_postgresql_refuses_whoever_lacks_its_password(
    server: PostgresServer, user: str
) -> None:
    server.start()
    await connect(server.url)

    with pytest.raises(asyncpg.InvalidPasswordError):
        await connect(f"postgresql://{user}@127.0.0.1:{server.port}/postgres")


def test_every_way_in_asks_for_the_password(server: PostgresServer, data: Path) -> None:
    server.start()

    rules = (data / "cluster" / "pg_hba.conf").read_text().splitlines()
    methods = {rule.split()[-1] for rule in rules if rule.strip() and not rule.startswith("#")}
    assert methods == {"scram-sha-256"}


async def test_a_cluster_without_a_password_gets_one(server: PostgresServer, data: Path) -> None:
    server.start()
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.execute("ALTER ROLE postgres PASSWORD NULL")
    await connection.close()
    server.kill()  # as an older version left it, and not even stopped cleanly
    access = data / "cluster" / "pg_hba.conf"
    access.write_text(access.read_text().replace("scram-sha-256", "trust"))
    (data / "password").unlink()
    data.chmod(0o755)

    server.start()

    assert mode(data) == 0o700
    assert "trust" not in access.read_text()
    connection = await asyncpg.connect(server.url)
    assert await connection.fetchval("SELECT answer FROM kept") == 42
    await connection.close()


def test_a_password_that_cannot_be_set_stops_the_start(
    server: PostgresServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.platform.dev.postgres_cluster.secrets.token_hex", lambda _: "it's")

    with pytest.raises(ServerFailed, match="FATAL:  unrecognized"):
        server.start()

    assert not (data / "password").exists()
    assert not (data / "cluster").exists()


def test_data_is_its_owners_alone(server: PostgresServer, data: Path) -> None:
    server.start()

    assert readable_by_others(data) == ""
    assert mode(data) == 0o700
    assert mode(data / "password") == 0o600


async def test_folders_above_the_data_stay_closed(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = {folder: mode(folder) for folder in [closed, *closed.parents]}

    with PostgresServer(closed / "postgres", fsync=False) as server:
        await connect(server.url)

    assert {folder: mode(folder) for folder in before} == before


def test_kafkas_data_is_its_owners_alone(place: Path) -> None:
    data = place / "kafka"
    data.mkdir(mode=0o755)  # as older versions made it
    with KafkaCluster(data):
        assert readable_by_others(data) == ""
        assert mode(data) == 0o700


def test_only_the_owner_reads_the_addresses(server: PostgresServer, place: Path) -> None:
    server.start()
    servers = Servers(place, "mock")
    servers.postgres = server
    folder = place / ".dev"
    folder.mkdir(mode=0o755)

    with publish_addresses(servers, folder / "servers.json"):
        password = make_url(server.url).password
        assert password is not None
        assert password in (folder / "servers.json").read_text()
        assert mode(folder) == 0o700
        assert mode(folder / "servers.json") == 0o600
        assert readable_by_others(folder) == ""


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user")


@pytest.fixture
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that only root may enter, with the installed programs of PostgreSQL."""
    installed = postgres_programs.installation_folder()
    wheel = installed.parent
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for folder in [installed, wheel.with_name(f"{wheel.name}.libs")]:
        shutil.copytree(folder, hidden / folder.relative_to(wheel.parent), copy_function=os.link)
    monkeypatch.setattr(
        postgres_programs, "installation_folder", lambda: hidden / wheel.name / installed.name
    )
    return hidden


@only_root
async def test_root_runs_a_copy_of_programs_that_only_root_reaches(
    server: PostgresServer, place: Path, hidden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = place / "temporary"
    temporary.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    server.start()
    await connect(server.url)
    server.kill()
    (copy,) = temporary.iterdir()
    next(copy.rglob("*.sample")).unlink()  # as if somebody had tidied up

    server.start()
    await connect(server.url)
    server.kill()
    assert list(temporary.iterdir()) == [copy]
    assert list(copy.rglob("*.sample")) != []
    os.chown(copy, 65534, -1)

    with pytest.raises(DevelopmentServerError, match="is another user's"):
        server.start()

    assert mode(hidden) == 0o700


@only_root
async def test_programs_are_not_copied_into_a_private_folder(
    server: PostgresServer, place: Path, hidden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    private = hidden / "temporary"
    private.mkdir(mode=0o755)  # open itself, but below a folder that is not
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    monkeypatch.setattr(postgres_programs, "_SHARED_FOLDERS", (str(place / "missing"), str(shared)))

    server.start()
    await connect(server.url)
    server.kill()

    assert list(private.iterdir()) == []
    assert len(list(shared.iterdir())) == 1
    assert mode(hidden) == 0o700


@only_root
def test_no_place_for_the_programs_is_one_line(
    server: PostgresServer, hidden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(hidden))
    monkeypatch.setattr(postgres_programs, "_SHARED_FOLDERS", ())

    with pytest.raises(DevelopmentServerError, match="set TMPDIR to a folder that everybody may"):
        server.start()
