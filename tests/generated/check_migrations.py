"""Run inside a rendered service: migrate an empty database, and compare it with the models."""

import os
import subprocess
import sys

from tests.fixtures import temporary_database

with temporary_database(os.environ["DATABASE_URL"]) as url:
    for arguments in (("upgrade", "heads"), ("check",)):
        done = subprocess.run(
            (sys.executable, "-X", "importtime", "-m", "alembic", *arguments),
            env=os.environ | {"DATABASE_URL": url},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "app.platform.service" in done.stderr, "what is imported is told"
        assert "app.platform.dev." not in done.stderr, "migrations run where development is not"
