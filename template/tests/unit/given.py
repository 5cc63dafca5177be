"""`given(*events).when(command).then(*events)`: a behaviour of an aggregate in one line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from app.domain.orders import Order, OrderEvent, fold

Command = Callable[[Any], list[OrderEvent]]


@dataclass(frozen=True)
class Decision:
    order: Order | None
    command: Command

    def then(self, *expected: OrderEvent) -> None:
        assert self.command(self.order) == list(expected)

    def then_refused(self, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            self.command(self.order)


@dataclass(frozen=True)
class History:
    events: tuple[OrderEvent, ...]

    def when(self, command: Command) -> Decision:
        return Decision(fold(self.events), command)


def given(*events: OrderEvent) -> History:
    return History(events)
