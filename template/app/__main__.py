"""The entry point of `app …`."""

import gc
import sys
from typing import TYPE_CHECKING

from app.platform import terminal

if TYPE_CHECKING:
    from app.platform.service import Service

# New objects between two runs of the garbage collector; Python's default is 700. Nearly all that a
# start creates are imported modules, which stay: to look through them takes a tenth of its time.
COLLECTOR_THRESHOLD = 50_000


def load_service() -> "Service":
    """Import the service, without the garbage collector.

    Modules live as long as the process. To look through them while they load, and once more at the
    end, would take a third of a short command's processor time.
    """
    gc.disable()
    try:
        from app.wiring import service
    finally:
        gc.freeze()
        gc.enable()
    return service


def main() -> None:
    gc.set_threshold(COLLECTOR_THRESHOLD)
    terminal.prepare_streams()
    try:
        from app.platform.cli import run
    except KeyboardInterrupt:
        sys.exit(130)  # the shell's code for a command ended by Ctrl-C
    run(load_service)


if __name__ == "__main__":
    main()
