"""Settings of the outbox."""

from enum import StrEnum

from pydantic import Field

from app.platform.config import EnvSettings


class OnPoison(StrEnum):
    """The treatment of a key's later events when one of its events can never be sent."""

    BLOCK = "block"
    PARK = "park"


class OutboxSettings(EnvSettings):
    """Settings of publisher and relay. Times are in seconds, sizes in bytes.

    `outbox_buckets` may be changed at any time: rows written with the old number are sent first.
    """

    outbox_buckets: int = Field(32, ge=1, le=1024)
    outbox_relay_tasks: int = Field(2, ge=1, le=64)
    outbox_batch_rows: int = Field(1000, ge=1, le=20_000)
    outbox_batch_bytes: int = Field(4_000_000, ge=1_000)
    outbox_poll_seconds: float = Field(0.5, ge=0.01)
    outbox_on_poison: OnPoison = OnPoison.BLOCK
    outbox_max_attempts: int = Field(5, ge=1, le=1000)
    outbox_max_lag_seconds: float = Field(60.0, gt=0)
