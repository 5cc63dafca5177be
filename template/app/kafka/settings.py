"""How to reach Kafka, and how much to trust it with at once."""

from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from app.about import SERVICE_NAME
from app.config import EnvSettings

SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]


class KafkaSettings(EnvSettings):
    """Settings of producer and consumers. Times are in seconds, sizes in bytes."""

    kafka_bootstrap_servers: str = Field("localhost:9092", pattern=r"^[^,\s]+:\d+(,[^,\s]+:\d+)*$")
    kafka_client_id: str = SERVICE_NAME

    kafka_security_protocol: SecurityProtocol = "PLAINTEXT"
    kafka_sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_sasl_oauth_token_url: str | None = None
    kafka_sasl_oauth_scope: str | None = None
    kafka_ssl_cafile: str | None = None
    kafka_ssl_certfile: str | None = None
    kafka_ssl_keyfile: str | None = None
    kafka_ssl_password: SecretStr | None = None

    kafka_compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "lz4"
    kafka_linger_ms: int = Field(0, ge=0)
    kafka_max_message_bytes: int = Field(1_000_000, ge=1_000)
    kafka_send_timeout_seconds: float = Field(10.0, gt=0)

    kafka_group_id: str = Field(SERVICE_NAME, min_length=1, max_length=150)
    kafka_auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    kafka_enable_auto_commit: bool = False
    kafka_session_timeout_seconds: float = Field(15.0, ge=6)
    kafka_drain_timeout_seconds: float = Field(15.0, gt=0)
    kafka_stall_timeout_seconds: float = Field(300.0, gt=0)

    kafka_topic_partitions: int = Field(3, ge=1)
    kafka_topic_replication_factor: int = Field(1, ge=1)
    kafka_topic_retention_hours: int = Field(7 * 24, ge=1)
    kafka_dlq_retention_hours: int = Field(30 * 24, ge=1)
    inbox_retention_hours: int = Field(14 * 24, ge=1)

    @field_validator("kafka_enable_auto_commit")
    @classmethod
    def _commits_are_explicit(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "leave it false: offsets are committed after a message's effects are,"
                " and auto-commit would lose messages"
            )
        return value

    @model_validator(mode="after")
    def _credentials_are_complete(self) -> "KafkaSettings":
        if not self.kafka_security_protocol.startswith("SASL"):
            return self
        if self.kafka_sasl_mechanism == "OAUTHBEARER":
            needed = {
                "KAFKA_SASL_OAUTH_TOKEN_URL": self.kafka_sasl_oauth_token_url,
                "KAFKA_SASL_USERNAME": self.kafka_sasl_username,
                "KAFKA_SASL_PASSWORD": self.kafka_sasl_password,
            }
        else:
            needed = {
                "KAFKA_SASL_USERNAME": self.kafka_sasl_username,
                "KAFKA_SASL_PASSWORD": self.kafka_sasl_password,
            }
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ValueError(
                f"KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} with"
                f" {self.kafka_sasl_mechanism} also needs {', '.join(missing)}"
            )
        return self
