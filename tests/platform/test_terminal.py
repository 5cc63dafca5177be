"""Text of others does not steer the operator's terminal."""

import os
import re
import subprocess
import sys
import unicodedata
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import TOPIC, record

import app
from app.platform.cli.dlq_letters import describe, summary
from app.platform.cli.event_messages import show
from app.platform.kafka import codec as names
from app.platform.kafka.dead_letters import DeadLetter
from app.platform.logs import _escape_control_characters, _plain_traceback
from app.platform.terminal import printable

# Clears the screen, sets the window's title, turns the direction, and begins a line of its own.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202eevil\x9b31m\r\n2 dead letters, 0 waiting\u2028\x7f"


def is_harmless(text: str, lines: int = 1) -> bool:
    risky = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return set(risky) <= {"\n"} and len(text.splitlines()) == lines


@given(st.text(st.characters()))
def test_no_text_steers_the_terminal(text: str) -> None:
    escaped = printable(text).replace("\u200c", "").replace("\u200d", "")

    assert is_harmless(f"-{escaped}")
    assert escaped.encode().decode() == escaped  # no halves of characters


@pytest.mark.parametrize(
    "text", ["plain", "Zoë", "日本語", "עברית", "می‌خواهم", "👩‍👧", "a\u00a0b", "∑ ± €", "\\x1b"]
)
def test_text_that_can_be_shown_is_left_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_is_escaped_can_be_read() -> None:
    assert printable("a\x1b\n\u202e\ud800b") == r"a\x1b\n\u202e\ud800b"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"


def test_a_message_is_shown_in_its_own_lines_only() -> None:
    hostile = HOSTILE.encode()
    shown = show(record(hostile, hostile, headers=[("name" + HOSTILE, hostile)]))

    assert is_harmless(shown, lines=4)  # the body has a line break of its own
    assert is_harmless(show(record(f'"{HOSTILE[:3]}\u2028\x85\x9b"'.encode(), b"k")), lines=2)


def test_a_dead_letter_of_a_stranger_is_one_harmless_line() -> None:
    headers = [
        (name, HOSTILE.encode())
        for name in (names.CONSUMER, names.ORIGIN_TOPIC, names.ERROR_TYPE, names.ERROR_MESSAGE)
    ]
    letter = DeadLetter.of(record(b"{}", HOSTILE.encode(), topic=TOPIC, headers=headers))

    assert is_harmless(describe(letter, applied=False))
    assert summary([letter], set()) == "1 dead letter, 1 waiting, 0 applied since"


def test_pretty_logs_escape_what_they_were_given() -> None:
    event = _escape_control_characters(
        None, "", {"event": HOSTILE, "key": HOSTILE, "stack": "a\nb", "count": 1}
    )

    assert all(is_harmless(str(event[name])) for name in ("event", "key"))
    assert (event["stack"], event["count"]) == ("a\nb", 1)


def test_pretty_tracebacks_escape_the_message() -> None:
    written = StringIO()
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        _plain_traceback(written, (ValueError, error, error.__traceback__))

    assert "\\x1b[2J" in written.getvalue()
    assert "\x1b" not in written.getvalue()


def test_only_one_place_prints() -> None:
    folder = Path(app.__file__).parent
    printing = re.compile(r"(?<![\w.])print\(|\becho\(|secho\(")
    found = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if printing.search(path.read_text())
    ]

    assert found == ["platform/terminal.py"]


PROGRAM = """
import sys
from app.platform.terminal import prepare_streams, say
prepare_streams()
say("Zoë ✓ 日本")
say("stderr ✓", err=True)
raise ValueError("broken\\x1b[2J ✓")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_a_character_gets_its_escape(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=30,
        check=False,
    )
    expected = "Zoë ✓ 日本\n".encode(encoding, "backslashreplace")
    assert done.stdout == expected
    assert "stderr ✓\n".encode(encoding, "backslashreplace") in done.stderr
    assert b"UnicodeEncodeError" not in done.stderr
    assert b"ValueError: broken\\x1b[2J" in done.stderr
