import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.platform.dev import java
from app.platform.dev.errors import JarsUnavailable
from app.platform.dev.java import Jar, cache_folder, kafka_jars, pinned

CONTENT = b"classes" * 1000


@dataclass
class Repository:
    """A Maven repository on loopback. `content` is what it serves for every jar."""

    url: str
    content: bytes = CONTENT
    requests: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    served = Repository("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.endswith(".jar"):
                self.send_error(404)
                return
            served.requests[self.path] += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(served.content)))
            self.end_headers()
            self.wfile.write(served.content)

        def log_message(self, format: str, *args: object) -> None:
            """Tests read stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(java, "_repositories", lambda: {"local": served.url})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield served
        server.shutdown()
        thread.join()


def jar(name: str) -> Jar:
    return Jar(f"org.example:{name}:1.0", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def jar_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.jar"))


def test_missing_jars_are_downloaded(repository: Repository, tmp_path: Path) -> None:
    paths = kafka_jars(tmp_path, [jar("a"), jar("b")])

    assert paths == [tmp_path / "a-1.0.jar", tmp_path / "b-1.0.jar"]
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]


def test_first_download_says_what_it_fetches_and_how_much(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka_jars(tmp_path, [jar("a"), jar("b")])

    said = capsys.readouterr().err
    assert "Apache Kafka" in said
    assert "2 jars" in said
    assert "100 %" in said


def test_complete_cache_needs_no_repository(
    repository: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka_jars(tmp_path, [jar("a")])
    repository.requests.clear()
    capsys.readouterr()

    kafka_jars(tmp_path, [jar("a")])

    assert not repository.requests
    assert capsys.readouterr().err == ""


def test_complete_cache_may_be_read_only(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka_jars(tmp_path, [jar("a")])
    monkeypatch.setattr(java, "FileLock", lambda _: pytest.fail("nothing should be written"))

    assert kafka_jars(tmp_path, [jar("a")]) == [tmp_path / "a-1.0.jar"]


def test_cache_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    """On it, `app dev` takes the mock broker."""
    (tmp_path / "cache").touch()

    with pytest.raises(JarsUnavailable, match="cache/kafka cannot be written: ") as error:
        kafka_jars(tmp_path / "cache" / "kafka", [jar("a")])

    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_empty_home_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    without = cache_folder()
    for empty in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(empty, "")

    assert cache_folder() == without


def test_jar_with_another_sum_is_refused(repository: Repository, tmp_path: Path) -> None:
    repository.content = CONTENT[:-1] + b"!"

    with pytest.raises(JarsUnavailable, match=r"a-1\.0\.jar .*SHA-256"):
        kafka_jars(tmp_path, [jar("a")])

    assert jar_files(tmp_path) == []


def test_half_a_jar_is_not_taken_for_whole(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "a-1.0.jar").write_bytes(CONTENT[:100])

    (path,) = kafka_jars(tmp_path, [jar("a")])

    assert path.read_bytes() == CONTENT


def test_abandoned_download_is_cleared_away(repository: Repository, tmp_path: Path) -> None:
    abandoned = tmp_path / "incoming-of-a-killed-process"
    abandoned.mkdir()
    (abandoned / "a-1.0.jar").write_bytes(CONTENT[:100])

    kafka_jars(tmp_path, [jar("a")])

    assert jar_files(tmp_path) == ["a-1.0.jar"]
    assert not abandoned.exists()


def test_two_at_once_download_each_jar_once(repository: Repository, tmp_path: Path) -> None:
    wanted = [jar(name) for name in "abcdef"]

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: kafka_jars(tmp_path, wanted), range(2)))

    assert both[0] == both[1]
    assert set(repository.requests.values()) == {1}


def test_unreachable_repository_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(java, "_repositories", lambda: {"gone": "http://127.0.0.1:1"})

    with pytest.raises(JarsUnavailable, match=r"a-1\.0\.jar cannot be downloaded"):
        kafka_jars(tmp_path, [jar("a")])


def test_every_jar_is_pinned_to_a_version_and_a_sum() -> None:
    assert len({jar.file_name for jar in pinned()}) == len(pinned())
    assert {len(jar.sha256) for jar in pinned()} == {64}
    assert "kafka_2.13-4.3.1.jar" in {jar.file_name for jar in pinned()}
