"""Settings of the embedded brokers (Kafka's `server.properties`)."""

from collections.abc import Mapping

from app.platform.dev.keystore import KeyStore, SaslSsl
from app.platform.dev.process import LOOPBACK

# Topics are provisioned, never created by a typing mistake. One developer's group needs no grace
# period. A dead broker or member is noticed soon. The rest keeps the broker small.
SMALL = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "log.index.size.max.bytes": "1048576",
    "log.cleaner.dedupe.buffer.size": "4194304",
}


def node_settings(
    number: int, controllers: Mapping[int, int], listeners: Mapping[str, int], *, secured: bool
) -> dict[str, str]:
    """Build the settings of node `number`.

    `controllers` maps each node to the port of its controller, `listeners` each name to its port.
    """
    voters = (f"{node}@{LOOPBACK}:{port}" for node, port in controllers.items())
    return {
        "process.roles": "broker,controller",
        "node.id": str(number),
        "controller.quorum.voters": ",".join(voters),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INTERNAL" if secured else "CLIENT",
        "listeners": ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in listeners.items()),
        "listener.security.protocol.map": ",".join(
            f"{name}:{'SASL_SSL' if secured and name == 'CLIENT' else 'PLAINTEXT'}"
            for name in listeners
        ),
    }


def cluster_settings(several: bool) -> dict[str, str]:
    """Build the settings of one broker, or of `several` that survive the loss of one."""
    replicas, in_sync = ("3", "2") if several else ("1", "1")
    return {
        # A killed broker that comes back is let in only when its last session has ended.
        "broker.session.timeout.ms": "4000" if several else "1500",
        "broker.heartbeat.interval.ms": "1000" if several else "500",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": "3" if several else "1",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": "1",
    }


def security_settings(security: SaslSsl, key_store: KeyStore) -> dict[str, str]:
    """Build the settings of a client listener with TLS and passwords."""
    user, password = security.username, security.password
    package = "org.apache.kafka.common.security"
    scram = f"{package}.scram.ScramLoginModule required;"
    plain = f'{package}.plain.PlainLoginModule required user_{user}="{password}";'
    listener = "listener.name.client"
    return {
        f"{listener}.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
        f"{listener}.scram-sha-256.sasl.jaas.config": scram,
        f"{listener}.scram-sha-512.sasl.jaas.config": scram,
        f"{listener}.plain.sasl.jaas.config": plain,
        f"{listener}.ssl.keystore.type": "PKCS12",
        f"{listener}.ssl.keystore.location": str(key_store.path),
        f"{listener}.ssl.keystore.password": key_store.password,
        f"{listener}.ssl.key.password": key_store.password,
    }
