"""The entry point of `app …`."""

import sys
from typing import TYPE_CHECKING

from app.platform import terminal

if TYPE_CHECKING:
    from app.platform.service import Service


def load_service() -> "Service":
    from app.wiring import service

    return service


def main() -> None:
    terminal.prepare_streams()
    try:
        from app.platform.cli import run
    except KeyboardInterrupt:
        sys.exit(130)  # the shell's code for a command ended by Ctrl-C
    run(load_service)


if __name__ == "__main__":
    main()
