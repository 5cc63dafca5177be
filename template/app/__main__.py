"""Where `app …` begins: what the service is made of takes a moment to load, and may be interrupted."""

import sys

from app import terminal


def main() -> None:
    terminal.prepare_streams()
    try:
        from app.cli import app
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell says it of a command that Ctrl-C ended
    app()


if __name__ == "__main__":
    main()
