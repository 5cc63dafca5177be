import errno
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Never

import pytest

from app.__main__ import main
from app.platform.cli import user_message


class Interrupted(ModuleType):
    """A module that Ctrl-C reaches while it loads."""

    def __getattr__(self, name: str) -> Never:
        raise KeyboardInterrupt


def test_ctrl_c_while_the_service_loads_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "app.platform.cli", Interrupted("app.platform.cli"))

    with pytest.raises(SystemExit) as end:
        main()

    assert end.value.code == 130


def test_a_folder_without_access_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()  # no user, not even root, may write below a file
    monkeypatch.setattr(
        sys, "argv", ["app", "schemas", "export", str(tmp_path / "file" / "folder")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, str)
    assert ended.value.code.startswith(f"error: no access to {tmp_path / 'file'}")
    assert "make the folder writable" in ended.value.code


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_read_only_project_is_named_with_the_remedy(code: int) -> None:
    message = user_message(OSError(code, os.strerror(code), "/srv/service/.dev"))
    assert message is not None
    assert message.startswith("no access to /srv/service/.dev: ")


def test_another_error_of_the_system_is_a_fault() -> None:
    assert user_message(OSError(errno.EBADF, os.strerror(errno.EBADF), "/srv/service/.dev")) is None
