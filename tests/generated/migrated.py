"""Run inside a rendered service: its migrations on an empty database, and what they leave to do."""

import os
import subprocess

from tests.fixtures import temporary_database

with temporary_database(os.environ["DATABASE_URL"]) as url:
    for arguments in (("upgrade", "heads"), ("check",)):
        subprocess.run(("alembic", *arguments), env=os.environ | {"DATABASE_URL": url}, check=True)
