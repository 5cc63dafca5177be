"""Apache Kafka's jars: fetched once from a Maven repository, then taken from the cache.

`jars.txt` pins each of them by its sum, so nothing is resolved: what is fetched is what was tried.
"""

import hashlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.dev.cache import cache_folder
from app.dev.errors import JarsUnavailable, StartCancelled, development
from app.dev.lock import FileLock

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
