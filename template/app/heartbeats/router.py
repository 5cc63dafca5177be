"""Heartbeats over HTTP."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response

from app.heartbeats import storage
from app.heartbeats.events import Source
from app.heartbeats.repository import HeartbeatCountRepository
from app.heartbeats.service import HeartbeatService
from app.platform.http.dependencies import IdempotencyDep, SessionDep, UnitOfWorkDep
from app.platform.http.idempotency import StoredResponse
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import RequestModel, ResponseModel

router = APIRouter(prefix="/heartbeats", tags=["heartbeats"], responses=responses(422, 500, 503))


class HeartbeatCreate(RequestModel):
    source: Source


class HeartbeatResponse(ResponseModel):
    id: int
    source: str
    sent_at: datetime


class HeartbeatCountResponse(ResponseModel):
    """`heartbeats` is the number that the consumer of `heartbeat.sent` has counted so far."""

    source: str
    heartbeats: int


@router.post(
    "",
    status_code=201,
    summary="Send a heartbeat",
    response_model=HeartbeatResponse,
    responses=with_headers(201, Location="The URL of the count"),
)
async def send_heartbeat(
    heartbeat: HeartbeatCreate, uow: UnitOfWorkDep, idempotency: IdempotencyDep
) -> Response:
    """Publishes `heartbeat.sent`, whose consumer counts it.

    With an `Idempotency-Key` the request can be repeated for a day: the same key and body get the
    same response, and are one heartbeat. The same key with another body gets 422.
    """
    service = HeartbeatService(storage.repository(uow.session), uow.events)

    async def send() -> StoredResponse:
        sent = HeartbeatResponse.model_validate(await service.send(heartbeat.source))
        return StoredResponse.of(201, sent, Location=f"/heartbeats/{sent.source}")

    return await idempotency.respond("POST /heartbeats", heartbeat.model_dump_json(), send)


@router.get("/{source}", summary="Get how many heartbeats of a source were counted")
async def get_heartbeat_count(
    source: Annotated[Source, Path()], session: SessionDep
) -> HeartbeatCountResponse:
    """Counted by the consumer of `heartbeat.sent`. A source without consumed heartbeats has 0."""
    count = await HeartbeatCountRepository(session).get(source)
    return HeartbeatCountResponse(source=source, heartbeats=count)
