"""Groups of dead letters: those of one consumer with one type of error."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.platform.dead_letters.selection import Found
from app.platform.kafka.dead_letters import DeadLetter


@dataclass(frozen=True)
class Group:
    """The letters of one consumer with one type of error. `waiting` is the number not applied since."""

    consumer: str
    error: str
    letters: Sequence[DeadLetter]
    waiting: int

    @property
    def times(self) -> list[datetime]:
        return times_of(self.letters)


def times_of(letters: Sequence[DeadLetter]) -> list[datetime]:
    """Return the times of the last failures, as far as the letters have them."""
    return [letter.last_failed_at for letter in letters if letter.last_failed_at]


def group(found: Found) -> list[Group]:
    """Group the letters by consumer and type of error, the largest group first."""
    members: dict[tuple[str, str], list[DeadLetter]] = defaultdict(list)
    for letter in found.letters:
        members[letter.consumer, letter.error_type].append(letter)
    groups = [
        Group(*key, letters, sum(letter.identity not in found.applied for letter in letters))
        for key, letters in members.items()
    ]
    return sorted(groups, key=lambda each: (-len(each.letters), each.consumer, each.error))
