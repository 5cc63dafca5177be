"""Alembic's environment: its connection to the database, and the tables that it compares."""

import asyncio
from importlib import import_module
from pkgutil import walk_packages

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

import app
from app.platform.config import load
from app.platform.database.engine import Base, DatabaseSettings, open_engine

# Every table is known, wherever it is written and whether anything uses it yet.
for module in walk_packages(app.__path__, "app."):
    if module.name.split(".")[1:3] != ["platform", "dev"]:  # has none, and is not for production
        import_module(module.name)


def is_compared(
    _item: object, name: str | None, kind: str, reflected: bool, counterpart: object | None
) -> bool:
    """Leave out the tables of an unfinished rebuild of a projection: they have no model."""
    left_over = kind == "table" and reflected and counterpart is None
    return not (left_over and name is not None and name.endswith("_shadow"))


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=is_compared,
        # One that fails leaves those before it in place, and may leave its transaction
        # (`with op.get_context().autocommit_block()`) for CREATE INDEX CONCURRENTLY.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_migrate() -> None:
    settings = load(DatabaseSettings)
    engine = open_engine(
        settings.database_url.get_secret_value(),
        pooler=settings.database_pooler,
        poolclass=NullPool,
    )
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


given: Connection | None = context.config.attributes.get("connection")
if context.is_offline_mode():
    raise SystemExit("SQL scripts (--sql) are not supported: run against a database")
if given is None:
    asyncio.run(connect_and_migrate())
else:
    migrate(given)
