import subprocess
import sys
from pathlib import Path

from app.platform.dev.folders import FileLock


def test_held_lock_is_refused_and_names_its_holder(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "folder" / "a.lock")
    other = FileLock(tmp_path / "folder" / "a.lock")

    assert lock.acquire()
    assert not other.acquire()
    assert other.holder.isdigit()

    lock.release()
    assert other.acquire()
    other.release()


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    hold = (
        "import sys; from pathlib import Path; from app.platform.dev.folders import FileLock;"
        "lock = FileLock(Path(sys.argv[1])); print(lock.acquire(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not FileLock(path).acquire()
        holder.kill()
        holder.wait()

        lock = FileLock(path)
        assert lock.acquire()
        lock.release()
