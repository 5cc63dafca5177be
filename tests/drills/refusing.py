"""A broker whose rights and topics are changed while a service runs."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)

# Everybody may do everything with a topic of which no right says otherwise.
AUTHORIZED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@dataclass(frozen=True)
class Operator:
    """Someone who changes the rights and settings of topics."""

    bootstrap_servers: str

    async def deny_writing(self, topic: str) -> None:
        allowed = self._rights(topic, AclOperation.ALL, AclPermissionType.ALLOW)
        denied = self._rights(topic, AclOperation.WRITE, AclPermissionType.DENY)
        bindings = [AclBinding(*allowed), AclBinding(*denied)]
        await self._change(lambda admin: admin.create_acls(bindings))

    async def allow_writing(self, topic: str) -> None:
        denied = self._rights(topic, AclOperation.WRITE, AclPermissionType.DENY)
        await self._change(lambda admin: admin.delete_acls([AclBindingFilter(*denied)]))

    @staticmethod
    def _rights(topic: str, operation: AclOperation, permission: AclPermissionType) -> Any:
        literal = ResourcePatternType.LITERAL
        return ResourceType.TOPIC, topic, literal, "User:*", "*", operation, permission

    async def configure(self, topic: str, name: str, value: str | None) -> None:
        """Set what Kafka calls `name`; None for its default."""
        operation = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
        entry = ConfigEntry(name, value or "", incremental_operation=operation)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        await self._change(lambda admin: admin.incremental_alter_configs([resource]))

    async def _change(self, change: Callable[[AdminClient], Mapping[Any, "Future[Any]"]]) -> None:
        await asyncio.to_thread(self._change_now, change)

    def _change_now(self, change: Callable[[AdminClient], Mapping[Any, "Future[Any]"]]) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        for future in change(admin).values():
            future.result(30)


class Refusal:
    """A refusal that passes: how it begins, how it ends, and the word of Kafka for it."""

    def __init__(self, operator: Operator, topic: str, kind: str) -> None:
        self._operator, self._topic, self._kind = operator, topic, kind

    @property
    def reason(self) -> str:
        return {
            "rights": "TopicAuthorizationFailedError",
            "clock": "InvalidTimestampError",
        }[self._kind]

    async def begin(self) -> None:
        if self._kind == "rights":
            await self._operator.deny_writing(self._topic)
        else:
            # By the clock of the broker, whatever is written comes from too far in the past.
            await self._operator.configure(self._topic, "message.timestamp.before.max.ms", "0")

    async def end(self) -> None:
        if self._kind == "rights":
            await self._operator.allow_writing(self._topic)
        else:
            await self._operator.configure(self._topic, "message.timestamp.before.max.ms", None)


KINDS = ["rights", "clock"]
