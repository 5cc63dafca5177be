"""Events, their versions, and the registry of events and topics."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, get_args
from uuid import UUID, uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

Payload = dict[str, Any]

# An id that fits the database. A message with a larger one is undecodable.
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
Upcaster = Callable[[Payload], Payload]

FIRST_VERSION = "1.0.0"
TOPIC_PATTERN = re.compile(r"^[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*){2}$")
VERSION_PATTERN = r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$"
TOPIC_MAX_LENGTH = 249  # Kafka's own limit


class BaseEvent(BaseModel):
    """A fact that happened. The JSON body of a message is the whole event.

    A concrete event declares `event_type: Literal["entity.action"]`, its `version` (semantic), and
    `key_field`, the attribute whose value keys its messages.
    """

    # JSON has neither NaN nor infinity, and readers could not accept null instead.
    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        # Published messages always have the fields with defaults.
        json_schema_serialization_defaults_required=True,
    )

    key_field: ClassVar[str]

    event_id: UUID = Field(default_factory=uuid4, description="Unique event ID")
    timestamp: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    version: str = Field(default=FIRST_VERSION, pattern=VERSION_PATTERN)
    event_type: str

    @field_validator("timestamp")
    @classmethod
    def _in_utc(cls, value: datetime) -> datetime:
        try:
            return value.astimezone(UTC)
        except OverflowError:
            raise ValueError("the time is out of range in UTC") from None

    @property
    def key(self) -> str:
        """The id of the entity. Events of one key keep their order."""
        return str(getattr(self, self.key_field))


@dataclass(frozen=True)
class EventType:
    """An entry of the registry: an event with its upcasters, and its owner.

    `upcasters` maps a major version to a pure function from its payload to the next major version's.
    `service` is the owner of a foreign event's topic; None means this service.
    """

    model: type[BaseEvent]
    upcasters: Mapping[int, Upcaster] = field(default_factory=dict)
    service: str | None = None

    @cached_property
    def name(self) -> str:
        """The event type, `entity.action`."""
        names = get_args(self.model.model_fields["event_type"].annotation)
        if len(names) != 1:
            raise ValueError(
                f'{self.model.__name__}: event_type is wrong: use Literal["entity.action"]'
            )
        return str(names[0])

    @cached_property
    def version(self) -> str:
        """The newest version, which is published and which handlers receive."""
        return str(self.model.model_fields["version"].default)

    @cached_property
    def major(self) -> int:
        return major_of(self.version)

    def check_upcasters(self) -> None:
        """Raise ValueError unless upcasters lead from every major version to the newest."""
        missing = [str(major) for major in range(1, self.major) if major not in self.upcasters]
        if missing:
            raise ValueError(
                f"{self.name} {self.version}: no upcaster from version {', '.join(missing)}:"
                " add one to its EventType"
            )


def major_of(version: str) -> int:
    return int(version.split(".", 1)[0])


class EventRegistry:
    """The events that a service publishes or reads, by type, by model and by topic.

    Raises ValueError if a topic is not `service.entity.action` or an upcaster is missing.
    """

    def __init__(self, service: str, event_types: Iterable[EventType]) -> None:
        self.service = service
        self._by_model: dict[type[BaseEvent], EventType] = {}
        self._by_topic: dict[str, EventType] = {}
        for event_type in event_types:
            self._add(event_type)

    def __iter__(self) -> Iterator[EventType]:
        return iter(self._by_model.values())

    def topic(self, model: type[BaseEvent]) -> str:
        """Return the topic of `model`. Raises LookupError for an event that is not registered."""
        event_type = self._by_model.get(model)
        if event_type is None:
            raise LookupError(f"{model.__name__} is not registered: add it to EVENTS")
        return f"{event_type.service or self.service}.{event_type.name}"

    def on_topic(self, topic: str) -> EventType | None:
        return self._by_topic.get(topic)

    def owner(self, topic: str) -> str | None:
        """Return the service that owns a foreign event's `topic`; None for other topics."""
        event_type = self._by_topic.get(topic)
        return None if event_type is None else event_type.service

    def owned_topics(self) -> list[str]:
        """Return the topics of the events that this service itself publishes."""
        return [self.topic(entry.model) for entry in self if entry.service is None]

    def _add(self, event_type: EventType) -> None:
        topic = f"{event_type.service or self.service}.{event_type.name}"
        check_topic_name(topic)
        if topic in self._by_topic:
            raise ValueError(f"two events share the topic {topic}: rename one of them")
        if event_type.model in self._by_model:
            raise ValueError(f"{event_type.model.__name__} is registered twice: remove one entry")
        event_type.check_upcasters()
        self._by_model[event_type.model] = event_type
        self._by_topic[topic] = event_type


def check_topic_name(topic: str) -> None:
    """Raise ValueError unless `topic` is `service.entity.action` in lower case."""
    if not TOPIC_PATTERN.fullmatch(topic) or len(topic) > TOPIC_MAX_LENGTH:
        raise ValueError(
            f"{topic!r} is not a topic name: use service.entity.action, in lower case letters,"
            f" digits, '-' and '_', at most {TOPIC_MAX_LENGTH} characters"
        )
