"""The AsyncAPI 3.0 document of the events that the service sends and receives.

https://www.asyncapi.com/docs/reference/specification/v3.0.0, and the bindings for Kafka, 0.5.0.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from app.platform.events.event import EventRegistry, EventType
from app.platform.kafka import codec as names
from app.platform.kafka.subscription import Subscription

Part = dict[str, Any]

BINDING_VERSION = "0.5.0"


def document(
    info: Part, registry: EventRegistry, subscriptions: Iterable[Subscription], group_id: str
) -> Part:
    """Build the document. `info` has at least title and version.

    Failure topics are internal, and omitted.
    """
    events = list(registry)
    payloads, schemas = models_json_schema(
        [(entry.model, "serialization") for entry in events],
        ref_template="#/components/schemas/{model}",
    )
    channels = {
        topic.name: {
            "address": topic.name,
            "messages": {
                entry.name: _message(entry, registry, payloads[entry.model, "serialization"])
                for entry in topic.types.values()
            },
        }
        for topic in registry.topics
    }
    return {
        "asyncapi": "3.0.0",
        "info": info,
        "defaultContentType": names.JSON,
        "channels": channels,
        "operations": _sends(events, registry) | _receives(subscriptions, registry, group_id),
        "components": {"schemas": schemas["$defs"]},
    }


def _message(entry: EventType, registry: EventRegistry, payload: Part) -> Part:
    key = {"type": "string", "description": f"The event's {entry.model.key_field}"}
    return {
        "name": entry.name,
        "title": f"{entry.name} {entry.version}",
        "contentType": names.JSON,
        "correlationId": {"location": f"$message.header#/{names.CORRELATION_ID}"},
        "headers": _headers(entry, registry),
        "payload": payload,
        "bindings": {"kafka": {"key": key, "bindingVersion": BINDING_VERSION}},
    }


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
    }
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
    """Return the names of the events of `topic` that the subscription handles."""
    entries = [registry.entry(model) for model in subscription.handlers]
    return [entry.name for entry in entries if registry.topic(entry.model) == topic]


def _channel_reference(events: Sequence[str], topic: str) -> Part:
    channel = f"#/channels/{topic}"
    messages = [{"$ref": f"{channel}/messages/{event}"} for event in events]
    return {"channel": {"$ref": channel}, "messages": messages}


def _group(name: str) -> Part:
    return {"groupId": {"type": "string", "const": name}, "bindingVersion": BINDING_VERSION}
