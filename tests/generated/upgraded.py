"""Run inside a rendered service: upgrade the database in a folder; its tables and users, as JSON.

python upgraded.py FOLDER [NAME of a user to add]
"""

import asyncio
import json
import sys
from pathlib import Path

import asyncpg

from app.dev.postgres import PostgresServer
from app.migrate import upgrade


async def look(url: str, newcomers: list[str]) -> dict[str, list[str]]:
    await upgrade(url)
    connection = await asyncpg.connect(url)
    for name in newcomers:
        await connection.execute("INSERT INTO users (email, username) VALUES ($1, $1)", name)
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    users = await connection.fetch("SELECT username FROM users")
    await connection.close()
    return {"tables": [row[0] for row in tables], "users": [row[0] for row in users]}


server = PostgresServer(Path(sys.argv[1]))
server.start()
try:
    print(json.dumps(asyncio.run(look(server.url, sys.argv[2:]))))
finally:
    server.stop()
