"""Run inside a rendered service: add a table and a column by `app db revision` and `app db upgrade`."""

import asyncio
import os
import subprocess
from importlib import invalidate_caches
from pathlib import Path

from sqlalchemy import Column, String

from app import wiring
from app.platform.database import migrations as migrate
from app.platform.database.engine import Base
from app.platform.database.revisions import RevisionError, create_revision
from tests.fixtures import temporary_database

REVIEWS = Path("app/reviews.py")  # no slice yet
TABLES = Base.metadata.tables
assert wiring.service.routers  # imported for the tables of all that is plugged in


async def revise(living: str, fresh: str) -> None:
    await migrate.upgrade(living)
    first = await create_revision(living, "By hand", empty=True)
    assert first is not None
    try:  # the service's own tests hold with a migration of its own, too
        about = "migrations or branch or missing or downgrade"
        tests = ("tests/platform/test_database.py", "-k", about)
        subprocess.run(("pytest", "-q", *tests), check=True)
    finally:
        first.unlink()
    print("before:", await create_revision(living, "Nothing"))
    await revise_for_a_new_module(living)
    TABLES["users" if "users" in TABLES else "heartbeats"].append_column(
        Column("nickname", String(50))
    )
    written = await create_revision(living, "Add nicknames")
    assert written is not None
    try:
        await judge(written, living, fresh)
    finally:
        written.unlink()


async def revise_for_a_new_module(living: str) -> None:
    """Revise for a module that nothing imports yet."""
    REVIEWS.write_text(
        "from sqlalchemy import Column, Integer, Table\n\n"
        "from app.platform.database.engine import Base\n\n"
        'Table("reviews", Base.metadata, Column("id", Integer, primary_key=True))\n'
    )
    invalidate_caches()
    try:
        written = await create_revision(living, "Add reviews")
    finally:
        REVIEWS.unlink()
    print("new module:", written and written.name)
    if written:
        written.unlink()
        Base.metadata.remove(TABLES["reviews"])


async def judge(written: Path, living: str, fresh: str) -> None:
    print("written:", written.name)
    subprocess.run(("ruff", "check", written), check=True)
    subprocess.run(("ruff", "format", "--check", written), check=True)
    try:
        await create_revision(living, "Too early")
    except RevisionError as refusal:
        print("again:", refusal)
    for url in (living, fresh):
        await migrate.upgrade(url)
        print("after:", await create_revision(url, "Nothing"))
    empty = await create_revision(living, "By hand", empty=True)
    assert empty is not None
    print("empty:", empty.name)
    empty.unlink()


with (
    temporary_database(os.environ["DATABASE_URL"]) as living,
    temporary_database(os.environ["DATABASE_URL"]) as fresh,
):
    asyncio.run(revise(living, fresh))
