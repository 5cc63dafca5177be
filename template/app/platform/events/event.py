"""Events, their versions, and the registry of events and topics."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args
from uuid import UUID, uuid4

from pydantic import (
    AliasChoices,
    AliasPath,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
)

from app.platform.events.envelope import Decoder

Payload = dict[str, Any]

# An id that fits the database. A message with a larger one is undecodable.
Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
Upcaster = Callable[[Payload], Payload]

FIRST_VERSION = "1.0.0"
TOPIC_PATTERN = re.compile(r"^[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*){2}$")
VERSION_PATTERN = r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$"
TOPIC_MAX_LENGTH = 249  # Kafka's own limit
KAFKA_TOPIC_PATTERN = re.compile(r"^(?!\.{1,2}$)[A-Za-z0-9._-]+$")  # any name that Kafka allows
NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # it is part of file names


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


E = TypeVar("E", bound=BaseEvent)


@dataclass(frozen=True)
class Tombstone(Generic[E]):
    """The deletion of a key: a message without a value, on the topic of the events `model`.

    It has neither id nor type. `event_id` is made of its position, `timestamp` is that of the record.
    """

    model: type[E]
    key: str
    event_id: UUID
    timestamp: datetime

    @property
    def event_type(self) -> str:
        return "tombstone"


@dataclass(frozen=True)
class EventTopic:
    """A topic with a name of its own, which several event types can share.

    `name` is any name that Kafka allows. `{service}` in it stands for the name of the owner. Messages
    of other types than the registered ones are skipped. `decoder` reads messages that are not in this
    service's own format. A `compacted` topic keeps the last message of each key.
    """

    name: str
    decoder: Decoder | None = None
    compacted: bool = False


@dataclass(frozen=True)
class EventType:
    """An entry of the registry: an event with its upcasters, its owner, and its topic.

    `upcasters` maps a major version to a pure function from its payload to the next major version's.
    `service` is the owner of a foreign event's topic; None means this service. `topic` is by default
    the event's own, `service.entity.action`. `type` is the type in its messages, by default
    `entity.action`, after the registry's prefix if the event is this service's own. `subject` is the
    field that its messages have as `ce_subject`, and `dataschema` the URI for `ce_dataschema`, in
    which `{type}` and `{version}` are replaced.
    """

    model: type[BaseEvent]
    upcasters: Mapping[int, Upcaster] = field(default_factory=dict)
    service: str | None = None
    topic: EventTopic | str | None = None
    type: str | None = None
    subject: str | None = None
    dataschema: str | None = None

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
    def declared_topic(self) -> EventTopic | None:
        """The topic that was chosen for it; None for its own."""
        return EventTopic(self.topic) if isinstance(self.topic, str) else self.topic

    @cached_property
    def version(self) -> str:
        """The newest version, which is published and which handlers receive."""
        return str(self.model.model_fields["version"].default)

    @cached_property
    def major(self) -> int:
        return major_of(self.version)

    @cached_property
    def reads_bytes_differently(self) -> bool:
        """Whether the model may read the bytes of a JSON body in another way than the parsed body.

        Strict fields take a text as a time or a UUID only in JSON, and a union of a text and such a
        type prefers the other member only there.
        """
        return _is_other_in_json(self.model.__pydantic_core_schema__)

    @cached_property
    def read_json(self) -> Callable[[bytes], BaseEvent]:
        """The model's compiled reader of JSON. Its own method takes half a microsecond longer."""
        return TypeAdapter(self.model).validator.validate_json

    @cached_property
    def read_parsed(self) -> Callable[[Payload], BaseEvent]:
        """The model's compiled reader of parsed JSON."""
        return TypeAdapter(self.model).validator.validate_python

    @cached_property
    def base_aliases(self) -> dict[str, str]:
        """The names in JSON of those fields of BaseEvent that have another one there."""
        aliases = ((name, _alias_of(self.model, name)) for name in BaseEvent.model_fields)
        return {name: alias for name, alias in aliases if isinstance(alias, str) and alias != name}

    @cached_property
    def base_fields(self) -> tuple[str, str, str]:
        """The fields of BaseEvent as the end of a JSON object: the parts around the id and the time."""
        names = ("event_id", "timestamp", "event_type", "version")
        id, time, type_, version = (json.dumps(self.base_aliases.get(name, name)) for name in names)
        end = f",{type_}:{json.dumps(self.name)},{version}:{json.dumps(self.version)}}}"
        return f',{id}:"', f'",{time}:', end

    def check_aliases(self) -> None:
        """Raise ValueError if a field of BaseEvent has a path as its alias."""
        for name in BaseEvent.model_fields:
            if isinstance(_alias_of(self.model, name), AliasPath):
                raise ValueError(
                    f"{self.model.__name__}: the alias of {name} is a path: use a name"
                )

    def check_upcasters(self) -> None:
        """Raise ValueError unless upcasters lead from every major version to the newest."""
        missing = [str(major) for major in range(1, self.major) if major not in self.upcasters]
        if missing:
            raise ValueError(
                f"{self.name} {self.version}: no upcaster from version {', '.join(missing)}:"
                " add one to its EventType"
            )


def _alias_of(model: type[BaseEvent], name: str) -> str | AliasPath | None:
    if model.model_config.get("validate_by_alias") is False:
        return None
    alias = model.model_fields[name].validation_alias
    return alias.choices[0] if isinstance(alias, AliasChoices) else alias


def _is_other_in_json(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        if schema.get("type") == "union" or schema.get("strict"):
            return True
        return any(map(_is_other_in_json, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_is_other_in_json, schema))


def major_of(version: str) -> int:
    return int(version.split(".", 1)[0])


@dataclass(frozen=True)
class TopicEvents:
    """A topic of the registry, with its event types by the type in their messages, and by name.

    `declared` is None for a topic of one event, `service.entity.action`. All its messages are that
    event's; of other topics, messages of unknown types are skipped.
    """

    name: str
    owner: str | None
    declared: EventTopic | None
    types: dict[str, EventType] = field(default_factory=dict)
    names: dict[str, EventType] = field(default_factory=dict)

    @property
    def decoder(self) -> Decoder | None:
        """The decoder of its messages; None for this service's own format."""
        return None if self.declared is None else self.declared.decoder

    @property
    def only(self) -> EventType | None:
        """The event type, if there is only one."""
        return next(iter(self.types.values())) if len(self.types) == 1 else None


class EventRegistry:
    """The events that a service publishes or reads, by model and by topic.

    Raises ValueError if the name of a topic is wrong, if types of one topic cannot be told apart, or if
    an upcaster is missing.
    """

    def __init__(
        self, service: str, event_types: Iterable[EventType], type_prefix: str = ""
    ) -> None:
        self.service = service
        self._type_prefix = type_prefix
        self._by_model: dict[type[BaseEvent], EventType] = {}
        self._topics: dict[str, TopicEvents] = {}
        for event_type in event_types:
            self._add(event_type)

    def __iter__(self) -> Iterator[EventType]:
        return iter(self._by_model.values())

    @property
    def topics(self) -> list[TopicEvents]:
        return list(self._topics.values())

    def entry(self, model: type[BaseEvent]) -> EventType:
        """Return the entry of `model`. Raises LookupError for an event that is not registered."""
        event_type = self._by_model.get(model)
        if event_type is None:
            raise LookupError(f"{model.__name__} is not registered: add it to EVENTS")
        return event_type

    def topic(self, model: type[BaseEvent]) -> str:
        """Return the topic of `model`. Raises LookupError for an event that is not registered."""
        return self._topic_of(self.entry(model))

    def type_of(self, event_type: EventType) -> str:
        """Return the type in the messages of the event."""
        if event_type.type is not None:
            return event_type.type
        return f"{self._type_prefix if event_type.service is None else ''}{event_type.name}"

    def events_on(self, topic: str) -> TopicEvents | None:
        """Return the event types of `topic`; None for a topic that no event has."""
        return self._topics.get(topic)

    def owner(self, topic: str) -> str | None:
        """Return the service that owns a foreign event's `topic`; None for other topics."""
        found = self._topics.get(topic)
        return None if found is None else found.owner

    def owned_topics(self) -> list[str]:
        """Return the topics of the events that this service itself publishes."""
        return [topic.name for topic in self.topics if topic.owner is None]

    def _topic_of(self, event_type: EventType) -> str:
        owner = event_type.service or self.service
        if event_type.declared_topic is None:
            return f"{owner}.{event_type.name}"
        return event_type.declared_topic.name.replace("{service}", owner)

    def _add(self, event_type: EventType) -> None:
        name, declared = self._topic_of(event_type), event_type.declared_topic
        if declared is None:
            check_topic_name(name)
        else:
            check_kafka_name(name)
            check_event_name(event_type.name)
        event_type.check_upcasters()
        event_type.check_aliases()
        topic = self._topics.setdefault(name, TopicEvents(name, event_type.service, declared))
        name_in_messages = self.type_of(event_type)
        if topic.types:
            _check_shared(topic, event_type, name_in_messages)
        if event_type.model in self._by_model:
            raise ValueError(f"{event_type.model.__name__} is registered twice: remove one entry")
        topic.types[name_in_messages] = event_type
        topic.names[event_type.name] = event_type
        self._by_model[event_type.model] = event_type


def _check_shared(topic: TopicEvents, added: EventType, type_: str) -> None:
    if topic.declared is None or added.declared_topic is None:
        raise ValueError(
            f"two events share the topic {topic.name}: rename one of them, or give both the same"
            " EventTopic"
        )
    if (topic.declared, topic.owner) != (added.declared_topic, added.service):
        raise ValueError(
            f"{added.name} declares the topic {topic.name} differently: give all events of a topic"
            " the same EventTopic and the same service"
        )
    if type_ in topic.types or added.name in topic.names:
        raise ValueError(
            f"two events of the topic {topic.name} have the type {type_}: they cannot be"
            " told apart: rename one of them"
        )


def check_kafka_name(topic: str) -> None:
    """Raise ValueError unless Kafka allows the name of `topic`."""
    if not KAFKA_TOPIC_PATTERN.fullmatch(topic) or len(topic) > TOPIC_MAX_LENGTH:
        raise ValueError(
            f"{topic!r} is not a topic name: use letters, digits, '.', '_' and '-', at most"
            f" {TOPIC_MAX_LENGTH} characters"
        )


def check_event_name(name: str) -> None:
    """Raise ValueError unless `name`, the event_type of a model, can be part of a file name."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{name!r} is not an event_type: use letters, digits, '.', '_' and '-', and the type of"
            " its messages as EventType(…, type=…)"
        )


def check_topic_name(topic: str) -> None:
    """Raise ValueError unless `topic` is `service.entity.action` in lower case."""
    if not TOPIC_PATTERN.fullmatch(topic) or len(topic) > TOPIC_MAX_LENGTH:
        raise ValueError(
            f"{topic!r} is not a topic name: use service.entity.action, in lower case letters,"
            f" digits, '-' and '_', at most {TOPIC_MAX_LENGTH} characters"
        )
