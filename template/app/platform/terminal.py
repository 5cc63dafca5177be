"""Text for a terminal: untrusted text cannot control it, and every encoding can print it."""

import io
import sys
import traceback
import unicodedata
from types import TracebackType

# Control characters, invisible formatting such as a change of direction, halves of characters, and
# separators that begin a new line.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# They are invisible, too, but several scripts and many emoji cannot be written without them.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def printable(text: str, keep: str = "") -> str:
    """Return `text` with control and invisible characters escaped, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(_escaped(char) if _is_risky(char, keep) else char for char in text)


def one_line(text: str, length: int = 160) -> str:
    """Return `text` on one line without escapes, shortened with an ellipsis if it is too long."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def say(line: str, *, err: bool = False) -> None:
    """Print one line, with control characters escaped."""
    print(printable(line), file=sys.stderr if err else sys.stdout, flush=True)


def say_block(lines: str, *, err: bool = False) -> None:
    """Print several lines. Untrusted parts of them have been made `printable` by the caller."""
    print(printable(lines, keep="\n"), file=sys.stderr if err else sys.stdout, flush=True)


def prepare_streams() -> None:
    """Escape characters that the streams' encoding lacks, and those of unhandled exceptions."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _show_exception


def _is_risky(char: str, keep: str) -> bool:
    return char not in keep and char not in _JOINERS and unicodedata.category(char) in _ESCAPED


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _show_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(printable(text, keep="\n\t"))
