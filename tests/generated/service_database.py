"""Run inside a rendered service: create, fill and read a database on the server of DATABASE_URL.

python service_database.py create       creates one and prints its URL
python service_database.py orders       adds a user with an order
python service_database.py heartbeats   adds three heartbeats of two sources, to a lean service
python service_database.py dump         prints the rows of each table, as JSON
"""

import asyncio
import json
import os
import secrets
import sys

import asyncpg
from sqlalchemy import make_url

URL = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql")
INSERT_ORDER = """
INSERT INTO users (email, username) VALUES ('ann@example.com', 'ann');
INSERT INTO orders (id, user_id, status, total, version) VALUES (1, 1, 'placed', 7.50, 1);
INSERT INTO order_items (order_id, position, sku, quantity, unit_price)
VALUES (1, 0, 'tea', 3, 2.50);
"""
INSERT_HEARTBEATS = "INSERT INTO heartbeats (source) VALUES ('door'), ('window'), ('door')"
LIST_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"


async def main(command: str) -> str:
    connection = await asyncpg.connect(URL.render_as_string(hide_password=False))
    try:
        match command:
            case "create":
                name = f"service_{secrets.token_hex(6)}"
                await connection.execute(f"CREATE DATABASE {name}")
                return URL.set(database=name).render_as_string(hide_password=False)
            case "orders":
                await connection.execute(INSERT_ORDER)
                return ""
            case "heartbeats":
                await connection.execute(INSERT_HEARTBEATS)
                return ""
            case _:
                tables = [row[0] for row in await connection.fetch(LIST_TABLES)]
                rows = {name: await connection.fetch(f'SELECT * FROM "{name}"') for name in tables}
                return json.dumps({name: [str(row) for row in rows[name]] for name in tables})
    finally:
        await connection.close()


print(asyncio.run(main(sys.argv[1])))
