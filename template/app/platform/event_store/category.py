"""Categories of streams: their event types, the versions of those, and the state they fold to.

Stored events are never rewritten. An event type whose fields change gets a new version and an
upcaster: a pure function from the data of one version to the data of the next. Upcasters run when
an event is loaded, so the rest of the code knows only the newest version.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

E = TypeVar("E")
S = TypeVar("S")

Data = dict[str, Any]
Upcaster = Callable[[Data], Data]


class UnknownEvent(Exception):
    """A stored event that this version of the service cannot read; the message names it."""


@dataclass(frozen=True)
class EventType(Generic[E]):
    """The type of an internal event: `model` is its dataclass, `version` the newest of its data.

    `upcasters` maps each older version to the function that converts its data to the next one.
    """

    name: str
    model: type[E]
    version: int = 1
    upcasters: Mapping[int, Upcaster] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if missing := sorted(set(range(1, self.version)) - self.upcasters.keys()):
            raise ValueError(f"{self.name}: no upcaster from version {missing[0]}")

    @cached_property
    def adapter(self) -> TypeAdapter[E]:
        return TypeAdapter(self.model)

    def load(self, version: int, data: str) -> E:
        """Load an event from `data` (JSON), stored in `version`. Raises UnknownEvent."""
        if version == self.version:
            return self.adapter.validate_json(data)
        if not 1 <= version < self.version:
            raise UnknownEvent(f"{self.name} version {version}: this service knows {self.version}")
        upcast: Data = json.loads(data)
        for step in range(version, self.version):
            upcast = self.upcasters[step](upcast)
        return self.adapter.validate_python(upcast)


@dataclass(frozen=True)
class Category(Generic[E, S]):
    """A category of streams: those of all entities of one kind.

    A snapshot of the state is stored every `snapshot_every` events; loading starts from it.
    Raise `snapshot_version` when the class of the state or `evolve` changes: older snapshots are
    then ignored.
    """

    name: str
    types: Sequence[EventType[Any]]
    state: type[S]
    evolve: Callable[[S | None, E], S]
    snapshot_version: int = 1
    snapshot_every: int = 100

    @cached_property
    def lock(self) -> int:
        """The second half of the keys of its advisory locks."""
        return zlib.crc32(self.name.encode()) - 2**31  # they are signed

    @cached_property
    def state_adapter(self) -> TypeAdapter[S]:
        return TypeAdapter(self.state)

    def type_of(self, event: E) -> EventType[Any]:
        """Return the type of `event`. Raises LookupError for an event of another category."""
        try:
            return self._by_model[type(event)]
        except KeyError:
            raise LookupError(f"{type(event).__name__} is no event of {self.name}") from None

    def read(self, name: str, version: int, data: str) -> E:
        """Load a stored event in its newest version. Raises UnknownEvent."""
        event_type = self._by_name.get(name)
        if event_type is None:
            raise UnknownEvent(f"{name}: this service knows no such event of {self.name}")
        event: E = event_type.load(version, data)
        return event

    def snapshot_is_due(self, before: int, after: int) -> bool:
        """Return whether a multiple of `snapshot_every` lies between two versions."""
        return after // self.snapshot_every > before // self.snapshot_every

    @cached_property
    def _by_model(self) -> dict[type, EventType[Any]]:
        return {entry.model: entry for entry in self.types}

    @cached_property
    def _by_name(self) -> dict[str, EventType[Any]]:
        return {entry.name: entry for entry in self.types}
