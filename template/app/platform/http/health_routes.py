"""Routes for probes and for Prometheus."""

from fastapi import APIRouter, Request, Response, status
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.exposition import choose_encoder

from app.platform.health import Report

router = APIRouter(tags=["operations"])

_responses: dict[int | str, dict[str, object]] = {503: {"model": Report}}


@router.get("/health/live", responses=_responses, summary="Is the process making progress?")
async def live(request: Request, response: Response) -> Report:
    return _with_status(await request.app.state.runtime.health.live(), response)


@router.get("/health/ready", responses=_responses, summary="Can the process do its work?")
async def ready(request: Request, response: Response) -> Report:
    return _with_status(await request.app.state.runtime.health.ready(), response)


def _with_status(report: Report, response: Response) -> Report:
    if report.status != "ok":
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return report


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    accept = request.headers.get("accept", "")
    if "application/openmetrics-text" in accept:  # with exemplars
        encode, content_type = choose_encoder(accept)
        return Response(encode(REGISTRY), media_type=content_type)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
