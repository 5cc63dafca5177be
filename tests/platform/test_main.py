import sys
from types import ModuleType
from typing import Never

import pytest

from app.__main__ import main


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
