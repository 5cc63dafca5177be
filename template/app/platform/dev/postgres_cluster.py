"""A PostgreSQL database cluster: the data folder that `initdb` creates, and its password."""

import contextlib
import secrets
import shutil
from pathlib import Path

from app.platform.dev.errors import DevelopmentServerError
from app.platform.dev.postgres_programs import MAJOR, Programs


class DatabaseCluster:
    """The cluster in the subfolder `cluster` of `data`."""

    def __init__(self, data: Path) -> None:
        self.path = data / "cluster"
        self._data = data
        self._password_file = data / "password"

    @property
    def password(self) -> str:
        return self._password_file.read_text().strip()

    def initialise(self, programs: Programs, *, fsync: bool) -> None:
        """Create the cluster and its password, unless they exist.

        Raises ServerFailed, or DevelopmentServerError for the data of another version.
        """
        version = self.path / "PG_VERSION"
        if version.exists():
            self._check_version(version.read_text().strip())
            if not self._password_file.exists():  # written by an older version, or interrupted
                self._require_password(self.path, programs)
            return
        # Created under another name and then renamed, so that half a cluster is never used.
        new = self._data / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if programs.user is not None:
            shutil.chown(new, programs.user)
        arguments = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        arguments += [] if fsync else ["--no-sync"]
        programs.run_offline(new, "initdb", "--username", "postgres", *arguments)
        self._require_password(new, programs)
        new.rename(self.path)

    def postmaster(self) -> list[str]:
        """Return the lines of the server's process id file; none if there is no file."""
        with contextlib.suppress(FileNotFoundError):
            return [line.strip() for line in self._postmaster_file.read_text().splitlines()]
        return []

    def remove_postmaster_file(self) -> None:
        self._postmaster_file.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def _postmaster_file(self) -> Path:
        return self.path / "postmaster.pid"

    def _check_version(self, found: str) -> None:
        if found != MAJOR:
            raise DevelopmentServerError(
                f"the data in {self._data} is of PostgreSQL {found}, the installed server is "
                f"{MAJOR}; delete it with `app dev --fresh`"
            )

    def _require_password(self, cluster: Path, programs: Programs) -> None:
        """Give the stopped `cluster` a password that every connection needs."""
        access = cluster / "pg_hba.conf"
        access.write_text(access.read_text().replace("trust", "scram-sha-256"))
        password = secrets.token_hex(24)
        # Iterations slow down guessing; this password cannot be guessed.
        programs.run_offline(
            cluster,
            "postgres",
            *("--single", "-c", "scram_iterations=1", "-c", "exit_on_error=on", "postgres"),
            script=f"ALTER ROLE postgres PASSWORD '{password}'\n",
        )
        written = self._data / "password.new"
        written.unlink(missing_ok=True)
        written.touch(mode=0o600)
        written.write_text(f"{password}\n")
        written.replace(self._password_file)
