"""The entry point of `app …`. Loading the service takes a moment, and may be interrupted."""

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
        sys.exit(130)  # as a shell says it of a command that Ctrl-C ended
    run(load_service)


if __name__ == "__main__":
    main()
