"""Shadow tables: copies of live tables that a rebuild fills and swaps in."""

from collections.abc import Sequence

from sqlalchemy import MetaData, Table, text
from sqlalchemy.ext.asyncio import AsyncSession

# PostgreSQL names the copies of indexes by itself. Indexes are matched by their definitions.
_INDEXES = text(
    "SELECT quote_ident(relname) AS name, concat(indisprimary, indisunique,"
    " regexp_replace(pg_get_indexdef(indexrelid), '^.*? USING ', '')) AS definition"
    " FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table)"
)

# The grants of the live table, for its replacement.
_GRANTS = text(
    "SELECT format('GRANT %s ON %I TO %s', privilege_type, CAST(:shadow AS text),"
    " CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)"
    " FROM pg_class, aclexplode(relacl) WHERE oid = to_regclass(:table) AND grantee <> relowner"
)


def shadow_of(table: Table) -> Table:
    return table.to_metadata(MetaData(), name=f"{table.name}_shadow")


async def create_shadow_tables(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Create empty shadows of `tables`, with their indexes and grants."""
    for table in tables:
        shadow = shadow_of(table)
        like = f'CREATE TABLE "{shadow.name}" (LIKE "{table.name}" INCLUDING ALL)'
        await session.execute(text(like))
        names = {"table": table.name, "shadow": shadow.name}
        for grant in (await session.scalars(_GRANTS, names)).all():
            await session.execute(text(grant))


async def drop_shadow_tables(session: AsyncSession, tables: Sequence[Table]) -> None:
    for table in tables:
        await session.execute(text(f'DROP TABLE IF EXISTS "{shadow_of(table).name}"'))


async def analyze_shadow_tables(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Collect statistics for the planner before the first query."""
    for table in tables:
        await session.execute(text(f'ANALYZE "{shadow_of(table).name}"'))


async def swap_tables(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Replace `tables` by their shadows, which take over the names of tables and indexes."""
    for table in tables:
        shadow = shadow_of(table)
        live = await _indexes(session, table.name)
        copies = await _indexes(session, shadow.name)
        await session.execute(text(f'DROP TABLE "{table.name}"'))
        await session.execute(text(f'ALTER TABLE "{shadow.name}" RENAME TO "{table.name}"'))
        for definition, name in copies.items():
            await session.execute(text(f"ALTER INDEX {name} RENAME TO {live[definition]}"))


async def _indexes(session: AsyncSession, table: str) -> dict[str, str]:
    rows = await session.execute(_INDEXES, {"table": table})
    return {row.definition: row.name for row in rows}
