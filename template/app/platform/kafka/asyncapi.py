"""The AsyncAPI 3.1 document of the events that the service sends and receives.

https://www.asyncapi.com/docs/reference/specification/v3.1.0, and the bindings for Kafka, 0.5.0.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from app.platform.events.envelope import Decoder, Described
from app.platform.events.event import BaseEvent, EventRegistry, EventType, TopicEvents
from app.platform.kafka import codec as names
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import Topic, event_topics, foreign_topics

Part = dict[str, Any]

BINDING_VERSION = "0.5.0"
TOMBSTONE = "tombstone"  # no event is named so: their names have a dot
_SCHEMES = {
    "PLAIN": "plain",
    "SCRAM-SHA-256": "scramSha256",
    "SCRAM-SHA-512": "scramSha512",
    "OAUTHBEARER": "oauth2",
}


def document(
    info: Part,
    registry: EventRegistry,
    subscriptions: Iterable[Subscription],
    settings: KafkaSettings,
) -> Part:
    """Build the document, with the brokers of `settings`. `info` has at least title and version.

    Failure topics are internal, and omitted.
    """
    events, consumers = list(registry), list(subscriptions)
    payloads, schemas = _schemas(registry)
    bindings = _channel_bindings(settings, registry)
    channels = {
        topic.name: {
            "address": topic.name,
            "bindings": {"kafka": bindings[topic.name]},
            "messages": {
                entry.name: _message(entry, registry, payloads[entry.model])
                for entry in topic.types.values()
            }
            | _tombstones(topic, consumers, registry),
        }
        for topic in registry.topics
    }
    group_id = settings.kafka_group_id
    security = _security_schemes(settings)
    return {
        "asyncapi": "3.1.0",
        "info": info,
        "defaultContentType": names.JSON,
        "servers": _servers(settings, security),
        "channels": channels,
        "operations": _sends(events, registry) | _receives(consumers, registry, group_id),
        "components": {"schemas": schemas} | ({"securitySchemes": security} if security else {}),
    }


def _schemas(registry: EventRegistry) -> tuple[dict[type[BaseEvent], Part], Part]:
    """Return the payload of each event, and the schemas that they refer to.

    A decoder's messages lack the fields of BaseEvent, which come from their envelope.
    """
    modes: dict[type[BaseEvent], JsonSchemaMode] = {
        entry.model: "validation" if _decoder(entry, registry) else "serialization"
        for entry in registry
    }
    found, definitions = models_json_schema(
        list(modes.items()), ref_template="#/components/schemas/{model}"
    )
    payloads = {model: found[model, mode] for model, mode in modes.items()}
    schemas: Part = definitions["$defs"]
    for entry in registry:
        if _decoder(entry, registry):
            name = payloads[entry.model]["$ref"].rsplit("/", 1)[1]
            from_envelope = {*BaseEvent.model_fields, *entry.base_aliases.values()}
            schemas[name] = _without(from_envelope, schemas[name])
    return payloads, schemas


def _decoder(entry: EventType, registry: EventRegistry) -> Decoder | None:
    """Return the decoder of a foreign event; this service writes its own format."""
    topic = registry.events_on(registry.topic(entry.model))
    return None if topic is None or topic.owner is None else topic.decoder


def _without(names: Collection[str], schema: Part) -> Part:
    """Return the schema of an object without the fields `names`."""
    properties = {name: of for name, of in schema["properties"].items() if name not in names}
    required = [name for name in schema.get("required", []) if name in properties]
    return schema | {"properties": properties, "required": required}


def _servers(settings: KafkaSettings, security: Part) -> Part:
    """Describe the brokers at which clients begin."""
    encrypted = settings.kafka_security_protocol.endswith("SSL")
    server: Part = {"protocol": "kafka-secure" if encrypted else "kafka"}
    if security:
        server["security"] = [{"$ref": f"#/components/securitySchemes/{name}"} for name in security]
    addresses = settings.kafka_bootstrap_servers.split(",")
    return {
        f"kafka-{number}": {"host": address} | server for number, address in enumerate(addresses, 1)
    }


def _security_schemes(settings: KafkaSettings) -> Part:
    found: Part = {}
    if settings.kafka_ssl_certfile and settings.kafka_security_protocol.endswith("SSL"):
        found["certificate"] = {"type": "X509"}
    if settings.kafka_security_protocol.startswith("SASL"):
        scheme: Part = {"type": _SCHEMES[settings.kafka_sasl_mechanism]}
        if scheme["type"] == "oauth2":
            scopes = dict.fromkeys((settings.kafka_sasl_oauth_scope or "").split(), "")
            flow = {"tokenUrl": settings.kafka_sasl_oauth_token_url, "availableScopes": scopes}
            scheme["flows"] = {"clientCredentials": flow}
        found["sasl"] = scheme
    return found


def _channel_bindings(settings: KafkaSettings, registry: EventRegistry) -> dict[str, Part]:
    """Describe each topic: those of this service as it creates them, others by name only."""
    foreign = foreign_topics(settings, registry)
    found: dict[str, Part] = {topic.name: {"topic": topic.name} for topic in foreign}
    for topic in event_topics(settings, registry):
        found[topic.name] = {
            "topic": topic.name,
            "partitions": topic.partitions,
            "replicas": topic.replication_factor,
            "topicConfiguration": _configuration(topic),
        }
    return {name: part | {"bindingVersion": BINDING_VERSION} for name, part in found.items()}


def _configuration(topic: Topic) -> Part:
    policies = topic.config.get("cleanup.policy", "delete").split(",")
    found: Part = {"cleanup.policy": policies}
    if "retention.ms" in topic.config:
        found["retention.ms"] = int(topic.config["retention.ms"])
    return found


def _message(entry: EventType, registry: EventRegistry, payload: Part) -> Part:
    decoder = _decoder(entry, registry)
    return {
        "name": entry.name,
        "title": f"{entry.name} {entry.version}",
        **(_of_others(decoder, registry.type_of(entry)) if decoder else _of_ours(entry, registry)),
        "payload": payload,
    }


def _tombstones(
    topic: TopicEvents, subscriptions: Iterable[Subscription], registry: EventRegistry
) -> dict[str, Part]:
    """Describe the tombstones of a topic that is compacted, or whose tombstones are handled."""
    handled = any(topic.name in _with_tombstones(each, registry) for each in subscriptions)
    if not (handled or (topic.declared and topic.declared.compacted)):
        return {}
    text = "A message without a value: its key is deleted."
    return {TOMBSTONE: {"name": TOMBSTONE, "description": text, "payload": {"type": "null"}}}


def _with_tombstones(subscription: Subscription, registry: EventRegistry) -> set[str]:
    """Return the topics whose tombstones the subscription handles."""
    return {registry.topic(model) for model in subscription.tombstones}


def _of_ours(entry: EventType, registry: EventRegistry) -> Part:
    key = {"type": "string", "description": f"The event's {entry.model.key_field}"}
    return {
        "contentType": names.JSON,
        "correlationId": {"location": f"$message.header#/{names.CORRELATION_ID}"},
        "headers": _headers(entry, registry),
        "bindings": {"kafka": {"key": key, "bindingVersion": BINDING_VERSION}},
    }


def _of_others(decoder: Decoder, type_: str) -> Part:
    """Describe the messages of a decoder; the payload alone is that of the event."""
    if not isinstance(decoder, Described):
        text = f"In a format that {type(decoder).__name__} reads. The payload is what it finds."
        return {"contentType": "application/octet-stream", "description": text}
    found = decoder.describe(type_)
    parts = {"contentType": found.content_type, "headers": found.headers, "description": found.text}
    return {name: part for name, part in parts.items() if part is not None}


def _headers(entry: EventType, registry: EventRegistry) -> Part:
    always = {
        names.CE_SPECVERSION: {"type": "string", "const": names.SPECVERSION},
        names.CE_ID: {"type": "string", "format": "uuid"},
        names.CE_TYPE: {"type": "string", "const": registry.type_of(entry)},
        names.CE_SOURCE: {"type": "string", "const": f"/{entry.service or registry.service}"},
        names.CE_TIME: {"type": "string", "format": "date-time"},
        names.CONTENT_TYPE: {"type": "string", "const": names.JSON},
        names.CORRELATION_ID: {
            "type": "string",
            "description": "Shared by all requests and events with one origin",
        },
    }
    sometimes = {
        names.CAUSATION_ID: {"type": "string", "description": "The event that caused this one"},
        names.TRACEPARENT: {"type": "string", "description": "W3C Trace Context"},
        names.TRACESTATE: {"type": "string", "description": "W3C Trace Context"},
    }
    if entry.subject is not None:
        sometimes[names.CE_SUBJECT] = {"type": "string"}
    if entry.dataschema is not None:
        sometimes[names.CE_DATASCHEMA] = {"type": "string", "format": "uri"}
    return {"type": "object", "properties": always | sometimes, "required": list(always)}


def _sends(events: Sequence[EventType], registry: EventRegistry) -> Part:
    return {
        f"send.{entry.name}": {
            "action": "send",
            **_channel_reference([entry.name], registry.topic(entry.model)),
        }
        for entry in events
        if entry.service is None
    }


def _receives(
    subscriptions: Iterable[Subscription], registry: EventRegistry, group_id: str
) -> Part:
    return {
        f"receive.{subscription.name}.{topic}": {
            "action": "receive",
            **_channel_reference(_handled(subscription, registry, topic), topic),
            "bindings": {"kafka": _group(f"{group_id}.{subscription.name}")},
        }
        for subscription in subscriptions
        for topic in subscription.topics(registry)
    }


def _handled(subscription: Subscription, registry: EventRegistry, topic: str) -> list[str]:
    """Return the names of the messages of `topic` that the subscription handles."""
    entries = [registry.entry(model) for model in subscription.handlers]
    events = [entry.name for entry in entries if registry.topic(entry.model) == topic]
    return [*events, *([TOMBSTONE] if topic in _with_tombstones(subscription, registry) else [])]


def _channel_reference(names_of: Sequence[str], topic: str) -> Part:
    channel = f"#/channels/{topic}"
    messages = [{"$ref": f"{channel}/messages/{name}"} for name in names_of]
    return {"channel": {"$ref": channel}, "messages": messages}


def _group(name: str) -> Part:
    return {"groupId": {"type": "string", "const": name}, "bindingVersion": BINDING_VERSION}
