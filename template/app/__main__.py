"""Where `app …` begins: what the service is made of takes a moment to load, and may be interrupted."""

import sys


def main() -> None:
    try:
        from app.cli import app
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell says it of a command that Ctrl-C ended
    app()


if __name__ == "__main__":
    main()
