"""Shadow tables: made like the live ones, filled beside them, and put in their place."""

from collections.abc import Sequence

from sqlalchemy import Table, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.cqrs.projection import shadow_of

# What PostgreSQL calls the copies of the indexes is its own affair; what tells an index from the
# others of its table is what it is on.
_INDEXES = text(
    "SELECT quote_ident(relname) AS name, concat(indisprimary, indisunique,"
    " regexp_replace(pg_get_indexdef(indexrelid), '^.*? USING ', '')) AS definition"
    " FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table)"
)

# The roles that may use the live table may use the one that takes its place.
_GRANTS = text(
    "SELECT format('GRANT %s ON %I TO %s', privilege_type, CAST(:shadow AS text),"
    " CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)"
    " FROM pg_class, aclexplode(relacl) WHERE oid = to_regclass(:table) AND grantee <> relowner"
)


async def create(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Make empty shadows of `tables`, with their indexes and grants."""
    for table in tables:
        shadow = shadow_of(table)
        like = f'CREATE TABLE "{shadow.name}" (LIKE "{table.name}" INCLUDING ALL)'
        await session.execute(text(like))
        names = {"table": table.name, "shadow": shadow.name}
        for grant in (await session.scalars(_GRANTS, names)).all():
            await session.execute(text(grant))


async def drop(session: AsyncSession, tables: Sequence[Table]) -> None:
    for table in tables:
        await session.execute(text(f'DROP TABLE IF EXISTS "{shadow_of(table).name}"'))


async def analyze(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Give the planner its statistics before the first query comes."""
    for table in tables:
        await session.execute(text(f'ANALYZE "{shadow_of(table).name}"'))


async def swap(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Put the shadows in the place of `tables`, whose names and index names they take over."""
    for table in tables:
        shadow = shadow_of(table)
        wanted = await _indexes(session, table.name)
        made = await _indexes(session, shadow.name)
        await session.execute(text(f'DROP TABLE "{table.name}"'))
        await session.execute(text(f'ALTER TABLE "{shadow.name}" RENAME TO "{table.name}"'))
        for definition, name in made.items():
            await session.execute(text(f"ALTER INDEX {name} RENAME TO {wanted[definition]}"))


async def _indexes(session: AsyncSession, table: str) -> dict[str, str]:
    rows = await session.execute(_INDEXES, {"table": table})
    return {row.definition: row.name for row in rows}
