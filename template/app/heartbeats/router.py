"""Heartbeats over HTTP."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from app.heartbeats import storage
from app.heartbeats.events import Source
from app.heartbeats.repository import HeartbeatCountRepository
from app.heartbeats.service import HeartbeatService
from app.platform.http.dependencies import IdempotencyDep, IdempotencyKey, SessionDep, UnitOfWorkDep
from app.platform.http.idempotency import StoredResponse
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import RequestModel, ResponseModel


class HeartbeatCreate(RequestModel):
    source: Source


class HeartbeatResponse(ResponseModel):
    id: int
    source: str
    sent_at: datetime


class HeartbeatCountResponse(ResponseModel):
    """`heartbeats` is their number, as far as the consumer of `heartbeat.sent` has come."""

    source: str
    heartbeats: int


async def get_heartbeat_service(uow: UnitOfWorkDep) -> HeartbeatService:
    return HeartbeatService(storage.repository(uow.session), uow.events)


async def get_heartbeat_counts(session: SessionDep) -> HeartbeatCountRepository:
    return HeartbeatCountRepository(session)


HeartbeatServiceDep = Annotated[HeartbeatService, Depends(get_heartbeat_service, scope="function")]
HeartbeatCountsDep = Annotated[
    HeartbeatCountRepository, Depends(get_heartbeat_counts, scope="function")
]

router = APIRouter(prefix="/heartbeats", tags=["heartbeats"], responses=responses(422, 500, 503))


@router.post(
    "",
    status_code=201,
    summary="Send a heartbeat",
    response_model=HeartbeatResponse,
    responses=with_headers(201, Location="The URL of the count"),
)
async def send_heartbeat(
    heartbeat: HeartbeatCreate,
    service: HeartbeatServiceDep,
    idempotency: IdempotencyDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Publishes `heartbeat.sent`, whose consumer counts it.

    With an `Idempotency-Key` the request can be repeated for a day: the same key and body get the
    same answer, and are one heartbeat. The same key with another body gets 422.
    """

    async def work() -> StoredResponse:
        sent = await service.send(heartbeat.source)
        body = HeartbeatResponse.model_validate(sent).model_dump_json().encode()
        return StoredResponse(201, {"Location": f"/heartbeats/{sent.source}"}, body)

    request = heartbeat.model_dump_json()
    return await idempotency.respond("POST /heartbeats", idempotency_key, request, work)


@router.get("/{source}", summary="Get how many heartbeats of a source were counted")
async def get_heartbeat_count(
    source: Annotated[Source, Path()], counts: HeartbeatCountsDep
) -> HeartbeatCountResponse:
    """Counted by the consumer of `heartbeat.sent`. A source of which nothing was consumed yet has
    0."""
    return HeartbeatCountResponse(source=source, heartbeats=await counts.of(source))
