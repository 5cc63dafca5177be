"""`app dev --reload` and `--servers-only`, on real servers."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests import demo, matrix
from tests.generated.conftest import Service
from tests.generated.processes import running
from tests.generated.test_round_trip import processes_in

SECONDS = 60
HELD_SECONDS = 3

# One run of `app dev` at a time in the folder of a service.
pytestmark = pytest.mark.xdist_group(matrix.codes()[0].code)

ROUTE = f"""\
@router.get("/held")
async def held() -> dict[str, str]:
    import asyncio

    await asyncio.sleep({HELD_SECONDS})
    return {{"held": "whole"}}


"""
MIGRATION = """
from alembic import op

revision = "core_9999"
down_revision = "core_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE users ADD COLUMN reloaded boolean")


def downgrade() -> None:
    op.execute("ALTER TABLE users DROP COLUMN reloaded")
"""


def wait_until(condition: Callable[[], bool], missing: str, service: Service) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < SECONDS, f"{missing}\n{log(service)}"
        time.sleep(0.05)
    return time.monotonic() - begun


def log(service: Service) -> str:
    return (service.path / "dev.log").read_text()


@contextmanager
def own_files(service: Service) -> Iterator[None]:
    """Put the files of the service back, and drop its data, at the end of the block."""
    kept = service.path.with_name("kept")
    folders = [service.path / "app", service.path / "migrations"]
    for folder in folders:
        shutil.copytree(folder, kept / folder.name)
    try:
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder)
            (kept / folder.name).rename(folder)
        (service.path / ".env").unlink(missing_ok=True)
        shutil.rmtree(service.path / ".dev", ignore_errors=True)


def test_an_edit_replaces_the_application(base: Service) -> None:
    """Slices, `.env` and migrations; what cannot be loaded is shown, and open requests end."""
    router = base.path / "app" / "users" / "router.py"
    with own_files(base), demo.running_service(base.path, "--reload", "--fresh") as (address, _):
        head, at, rest = router.read_text().partition("@router.")  # before /users/{user_id}
        router.write_text(head + ROUTE + at + rest)
        served = wait_until(
            lambda: has_route(address, "/users/held"), "the route is not served", base
        )
        base.report(f"from an edit to its effect under app dev --reload: {served:.1f} s")

        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(demo.call, f"{address}/users/held")
            time.sleep(HELD_SECONDS / 3)  # it is on its way
            router.write_text(router.read_text().replace("/held", "/edited"))
            assert held.result() == (200, {"held": "whole"}), (
                "the application was stopped with it open"
            )
        wait_until(lambda: has_route(address, "/users/edited"), "second edit", base)

        correct = router.read_text()
        router.write_text("def broken(:\n")
        wait_until(lambda: "save a file to try again" in log(base), "no word of the error", base)
        assert "SyntaxError: invalid syntax" in log(base)
        assert demo.call(f"{address}/users/edited")[0] == 200, "the version before serves"

        (base.path / ".env").write_text("HTTP_MAX_BODY_BYTES=1000\n")
        router.write_text(correct.replace("/edited", "/mended"))
        wait_until(lambda: has_route(address, "/users/mended"), "mended edit", base)
        wait_until(lambda: demo.call(f"{address}/users", ["x" * 2000])[0] == 413, ".env", base)

        migration = base.path / "migrations" / "versions" / "core_9999_reloaded.py"
        migration.write_text(MIGRATION)
        wait_until(lambda: '"revisions": ["core_9999"]' in log(base), "the migration", base)


def test_the_application_ends_with_a_killed_supervisor(base: Service) -> None:
    with demo.running_service(base.path, "--reload", keep=True) as (address, process):
        supervisor = json.loads((base.path / ".dev" / "servers.json").read_text())["process"]
        os.kill(supervisor, signal.SIGKILL)
        process.wait(SECONDS)
        wait_until(lambda: not is_served(address), "the application is an orphan", base)
    with demo.running_service(base.path):
        assert "here was killed: its servers were stopped" in log(base)
    assert processes_in(base.path) == []


def has_route(address: str, path: str) -> bool:
    return path in demo.call(f"{address}/openapi.json")[1]["paths"]


def is_served(address: str) -> bool:
    try:
        return demo.call(f"{address}/health/live")[0] == 200
    except OSError:
        return False


def test_servers_only_leaves_consuming_to_others(base: Service) -> None:
    addresses = base.path / ".dev" / "servers.json"
    with running(base, "dev", "--servers-only", "--fresh") as servers:
        wait_until(lambda: "Nothing serves or consumes yet" in log(base), "no servers", base)
        assert addresses.exists()
        base.run("app", "topics", "check")
        port = demo.free_port()
        address = f"http://127.0.0.1:{port}"
        with running(base, "api", "--port", str(port)) as api:
            wait_until(lambda: demo.is_ready(address, api), "no API", base)
            status, created = demo.call(f"{address}/users", demo.SAMPLE_TRIP.body)
            assert status == 201, created
            user = f"{address}/users/{created['id']}"
            time.sleep(2)  # a consumer would have applied it by now
            assert demo.call(user)[1]["profile"] is None
            with running(base, "worker", "--port", str(demo.free_port())):
                wait_until(
                    lambda: demo.call(user)[1]["profile"] is not None,
                    "the worker beside it consumes nothing",
                    base,
                )
    assert servers.returncode == 0
    assert not addresses.exists()
    assert processes_in(base.path) == []
