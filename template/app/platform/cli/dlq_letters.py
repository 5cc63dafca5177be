"""Dead letters for `app dlq …`: the lines of a list, and refusals."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from app.platform.cli.base import counted, failure, on_database
from app.platform.dead_letters import selection
from app.platform.dead_letters.selection import Found, SelectionRefused
from app.platform.kafka.dead_letters import DeadLetter, Filter, Identity
from app.platform.runtime import Context
from app.platform.terminal import one_line, printable


@contextmanager
def refusals_as_errors() -> Iterator[None]:
    """End the command with exit code 1 if its selection is refused."""
    try:
        yield
    except SelectionRefused as refused:
        raise failure(str(refused)) from refused


def find(
    context: Context,
    only: Filter,
    undecodable: bool,
    to: str | None = None,
    ids: Sequence[str] = (),
) -> Found:
    """Find the letters, of all or of `ids`.

    Ends the command if the selection or the way `to` a consumer is refused.
    """

    async def run() -> Found:
        if to is not None:
            await selection.check_reassignment(context, only, to)
        return await on_database(
            lambda database: selection.find(context, database, only, undecodable, to)
        )

    with refusals_as_errors():
        found = asyncio.run(run())
        return _named(found, ids) if ids else found


def _named(found: Found, ids: Sequence[str]) -> Found:
    """Keep the letters with these ids. Raises SelectionRefused if one is not among them."""
    letters = {letter.id: letter for letter in found.letters}
    for letter_id in ids:
        if letter_id not in letters:
            raise SelectionRefused(
                f"there is no dead letter {letter_id} to choose, or it failed again since and has"
                " another id: run `app dlq list` with the same options"
            )
    return replace(found, letters=[letters[letter_id] for letter_id in dict.fromkeys(ids)])


def describe(letter: DeadLetter, applied: bool) -> str:
    failed = letter.last_failed_at.isoformat(timespec="seconds") if letter.last_failed_at else "-"
    state = "applied" if applied else "waiting"
    replays = f" replayed={letter.replays}" if letter.replays else ""
    omitted = f" omitted={letter.omitted_bytes}B" if letter.omitted_bytes else ""
    error = one_line(f"{letter.error_type}: {letter.error_message}")
    return printable(
        f"{letter.id}  {state}  {failed}  consumer={letter.consumer} from={letter.origin}"
        f"[{letter.origin_partition}]@{letter.origin_offset} key={letter.key or 'none'}"
        f" attempts={letter.attempts}{replays}{omitted}  {error}"
    )


def summary(letters: Sequence[DeadLetter], applied: set[Identity]) -> str:
    waiting = sum(letter.identity not in applied for letter in letters)
    total, since = counted(len(letters), "dead letter"), len(letters) - waiting
    return f"{total}, {waiting} waiting, {since} applied since"
