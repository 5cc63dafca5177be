"""Heartbeats over HTTP."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from app.dependencies import IdempotencyDep, IdempotencyKey, SessionDep, UnitOfWorkDep
from app.errors import responses, with_headers
from app.events.heartbeats import Source
from app.idempotency import Answer
from app.repositories.heartbeats import BindHeartbeats, HeartbeatCountRepository
from app.schemas import RequestModel, ResponseModel
from app.services.heartbeats import HeartbeatService


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


async def get_heartbeat_repository(request: Request) -> BindHeartbeats:
    """Where heartbeats are kept, as `wiring` says."""
    bind: BindHeartbeats = request.app.state.heartbeats
    return bind


HeartbeatRepositoryDep = Annotated[BindHeartbeats, Depends(get_heartbeat_repository)]


async def get_heartbeat_service(
    uow: UnitOfWorkDep, repository: HeartbeatRepositoryDep
) -> HeartbeatService:
    return HeartbeatService(repository(uow.session), uow.events)


async def get_heartbeat_counts(session: SessionDep) -> HeartbeatCountRepository:
    return HeartbeatCountRepository(session)


HeartbeatServiceDep = Annotated[HeartbeatService, Depends(get_heartbeat_service, scope="function")]
HeartbeatCountsDep = Annotated[
    HeartbeatCountRepository, Depends(get_heartbeat_counts, scope="function")
]

router = APIRouter(prefix="/heartbeats", tags=["heartbeats"], responses=responses(422, 500, 503))
# Apart, so that a module which knows more than the present count can answer for a source.
present = APIRouter(prefix="/heartbeats", tags=["heartbeats"], responses=responses(422, 500, 503))


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

    async def work() -> Answer:
        sent = await service.send(heartbeat.source)
        body = HeartbeatResponse.model_validate(sent).model_dump_json().encode()
        return Answer(201, {"Location": f"/heartbeats/{sent.source}"}, body)

    request = heartbeat.model_dump_json()
    return await idempotency.respond("POST /heartbeats", idempotency_key, request, work)


@present.get("/{source}", summary="Get how many heartbeats of a source were counted")
async def get_heartbeat_count(
    source: Annotated[Source, Path()], counts: HeartbeatCountsDep
) -> HeartbeatCountResponse:
    """Counted by the consumer of `heartbeat.sent`. A source of which nothing was consumed yet has
    0."""
    return HeartbeatCountResponse(source=source, heartbeats=await counts.of(source))
